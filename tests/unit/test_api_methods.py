"""Methods of every path: those of the document, and 405 with the right `Allow` for the others."""

import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.api_client import Json, client_of

pytestmark = pytest.mark.disable_socket

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

UNDOCUMENTED: dict[str, set[str]] = {"/api/uploads/{upload_id}": {"POST"}}
"""Methods that a path has and the document has not: POST stands for others, where a network lets nothing else through."""


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


def documented(client: FlaskClient) -> dict[str, set[str]]:
    """Returns the methods of each path of the document; HEAD goes with GET."""
    paths: Json = client.get("/openapi.json").get_json()["paths"]
    found = {path: {method.upper() for method in operations} for path, operations in paths.items()}
    return {path: names | ({"HEAD"} if "GET" in names else set()) for path, names in found.items()}


def test_every_other_method_is_405_with_the_right_allow(client: FlaskClient) -> None:
    paths = documented(client)
    assert len(paths) > 20
    for path, methods in paths.items():
        url = re.sub(r"{(?:[^}]*)}", "x", path)
        offered = methods | UNDOCUMENTED.get(path, set())
        for method in set(METHODS) - offered:
            response = client.open(url, method=method, headers={"Tus-Resumable": "1.0.0"})
            assert response.status_code == 405, (method, url)
            allowed = {name.strip() for name in response.headers["Allow"].split(",")}
            assert allowed - {"OPTIONS"} == offered, (method, url)


def test_an_unknown_path_is_404_with_every_method(client: FlaskClient) -> None:
    for url in ("/absent", "/api/absent", "/v1/absent", "/v1/chat/absent"):
        for method in METHODS:
            assert client.open(url, method=method).status_code == 404, (method, url)
