"""The home page and the documentation: complete without a network, and without inline scripts."""

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from flask.testing import FlaskClient

from services.templates import TEMPLATES
from tests.api_client import client_of

pytestmark = pytest.mark.disable_socket

LOADED = re.compile(r"""<(?:script|link|img)\b[^>]*?(?:src|href)=["']([^"']+)""")


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


# ---- pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["/", "/docs"])
def test_a_page_loads_nothing_from_other_hosts(client: FlaskClient, url: str) -> None:
    page = client.get(url)
    assert (page.status_code, page.mimetype) == (200, "text/html")
    addresses = LOADED.findall(page.text)
    assert len(addresses) >= 3
    for address in addresses:
        assert not re.match(r"\w*:?//", address)
        assert client.get(urljoin(url, address), buffered=True).status_code == 200


@pytest.mark.parametrize("url", ["/", "/docs"])
def test_a_page_runs_only_scripts_of_the_service_and_has_none_inline(client: FlaskClient, url: str) -> None:
    page = client.get(url)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert re.findall(r"<script[^>]*>([^<]+)</script>", page.text) == []
    assert not re.search(r"""\s(on\w+|style)=["']""", page.text)


def test_the_page_links_to_the_documentation(client: FlaskClient) -> None:
    assert 'href="/docs"' in client.get("/").text


def test_every_module_that_a_script_imports_exists(client: FlaskClient) -> None:
    pending, seen = ["/static/home.js"], set[str]()
    while pending:
        url = pending.pop()
        seen.add(url)
        script = client.get(url, buffered=True)
        assert script.status_code == 200, url
        found = {
            urljoin(url, address) for address in re.findall(r'^import .* from "(.+)";$', script.text, re.M)
        }
        pending += found - seen
    assert len(seen) == 3


def test_the_page_offers_every_template(client: FlaskClient) -> None:
    options = re.findall(r'<option value="([^"]*)">', client.get("/").text)
    assert options == ["", *TEMPLATES]
