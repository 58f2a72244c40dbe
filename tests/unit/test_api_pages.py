"""The pages and the documentation: complete without a network, and without inline scripts."""

import re
import sys
from pathlib import Path
from urllib.parse import urljoin

import pytest
from flask.testing import FlaskClient

from tests.api_client import client_of

pytestmark = pytest.mark.disable_socket

PAGES = ("/", "/merge", "/jobs", "/playground", "/system")
LOADED = re.compile(r"""<(?:script|link|img)\b[^>]*?(?:src|href)=["']([^"']+)""")
RUN = re.compile(r"<script(?![^>]*application/json)[^>]*>([^<]+)</script>")
IMPORTED = re.compile(r'^import .* from "(.+)";$', re.M)
LARGEST_PAGE_BYTES = 150_000

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy"))


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


def loaded_by(client: FlaskClient, url: str) -> dict[str, bytes]:
    """Returns the files that a page loads, with the modules that its scripts import."""
    pending = {urljoin(url, address) for address in LOADED.findall(client.get(url).text)}
    files = dict[str, bytes]()
    while pending:
        address = pending.pop()
        assert not re.match(r"\w*:?//", address)
        response = client.get(address, buffered=True)
        assert response.status_code == 200, address
        files[address] = response.data
        if address.endswith(".js") and "/vendor/" not in address:
            pending |= {urljoin(address, name) for name in IMPORTED.findall(response.text)} - set(files)
    return files


@pytest.mark.parametrize("url", [*PAGES, "/docs"])
def test_a_page_loads_only_files_of_the_service_and_all_exist(client: FlaskClient, url: str) -> None:
    assert client.get(url).mimetype == "text/html"
    assert len(loaded_by(client, url)) >= 4


@pytest.mark.parametrize("url", PAGES)
def test_a_page_with_all_its_files_is_small(client: FlaskClient, url: str) -> None:
    files = loaded_by(client, url)
    assert sum(map(len, files.values())) + len(client.get(url).data) < LARGEST_PAGE_BYTES


@pytest.mark.parametrize("url", [*PAGES, "/docs"])
def test_a_page_runs_only_scripts_of_the_service_and_has_none_inline(client: FlaskClient, url: str) -> None:
    page = client.get(url)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy
    assert RUN.findall(page.text) == []
    assert not re.search(r"""\s(on\w+|style)=["']""", page.text)


def test_the_page_links_to_the_documentation(client: FlaskClient) -> None:
    assert 'href="/docs"' in client.get("/").text


@pytest.mark.parametrize(
    ("header", "cookie", "language"),
    [
        ("zh-TW,en;q=0.5", None, "zh-Hans"),
        ("fr,zh;q=0.8,en;q=0.7", None, "zh-Hans"),
        ("en-GB,zh;q=0.5", None, "en"),
        ("fr", None, "en"),
        ("en", "zh", "zh-Hans"),
        ("zh", "en", "en"),
        ("en", "xx", "en"),
    ],
)
def test_the_language_is_that_of_the_cookie_or_else_of_the_browser(
    client: FlaskClient, header: str, cookie: str | None, language: str
) -> None:
    if cookie:
        client.set_cookie("language", cookie)
    page = client.get("/jobs", headers={"Accept-Language": header})
    assert f'<html lang="{language}"' in page.text


# ---- translations -------------------------------------------------------------------------------------


def test_every_text_of_the_pages_is_translated_and_compiled() -> None:
    import translations

    for domain, file in translations.catalog_files():
        catalog = translations.read(file)
        assert {message.id for message in catalog} == {
            message.id for message in translations.template_of(domain)
        }, f"make translations, then translate {file}"
        assert [
            message.id for message in catalog if not (message.string and all(message.string)) or message.fuzzy
        ] == []
        assert file.with_suffix(".mo").read_bytes() == translations.compiled(catalog)


def test_a_translation_keeps_the_placeholders_of_its_text() -> None:
    import translations

    placeholder = re.compile(r"\{\w+\}|%\(\w+\)s")
    for _, file in translations.catalog_files():
        for message in translations.read(file):
            texts = (
                [message.id, message.string]
                if isinstance(message.id, str)
                else [message.id[-1], message.string[0]]
            )
            found = [sorted(placeholder.findall(text)) for text in texts if message.id]
            assert not found or found[0] == found[1], message.id


def test_a_text_has_one_translation_on_all_pages() -> None:
    import translations

    found: dict[object, dict[object, str]] = {}
    for domain, file in translations.catalog_files():
        for message in translations.read(file):
            found.setdefault(message.id, {})[message.string] = domain
    assert [uses for text, uses in found.items() if text and len(uses) > 1] == []
