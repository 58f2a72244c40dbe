"""Roles and routes: every route with no key, a wrong key and each role, as docs/reliability.md has it."""

import hashlib
import re
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.api_client import client_of

pytestmark = pytest.mark.disable_socket

ROOT = Path(__file__).parents[2]
ROLES = ("read", "submit", "admin")
TABLE_HEAD = "| route | no key | unknown key | read | submit | admin |"


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    lines = [f"{hashlib.sha256(f'key-{role}'.encode()).hexdigest()} {role} {role}\n" for role in ROLES]
    keys = tmp_path / "keys"
    keys.write_text("".join(lines))
    return client_of(tmp_path / "models", api_keys_file=keys)


def outcome(client: FlaskClient, method: str, url: str, key: str | None) -> str:
    """Returns the status of a refusal, or "yes" for a request that reaches its view."""
    headers = {"Tus-Resumable": "1.0.0", **({} if key is None else {"Authorization": f"Bearer {key}"})}
    with client.open(url, method=method, headers=headers) as response:
        return str(response.status_code) if response.status_code in (401, 403) else "yes"


def rows(client: FlaskClient) -> list[str]:
    """Returns the table's rows; each unknown key begins differently, since guesses are limited."""
    document = client.get("/openapi.json").get_json()
    found = []
    routes = [(path, method.upper()) for path, methods in document["paths"].items() for method in methods]
    for number, (path, method) in enumerate(sorted(routes)):
        url = re.sub(r"{[^}]*}", "x", path)
        keys = (None, f"{number:06d}", *(f"key-{role}" for role in ROLES))
        cells = [outcome(client, method, url, key) for key in keys]
        found.append(f"| `{method} {path}` | {' | '.join(cells)} |")
    return found


def test_the_documented_table_is_what_each_key_may(client: FlaskClient) -> None:
    text = (ROOT / "docs" / "reliability.md").read_text("utf-8")
    lines = text.partition(TABLE_HEAD)[2].partition("\n\n")[0].strip().splitlines()
    documented = [line for line in lines[1:] if line.startswith("| `")]
    assert documented == rows(client), "\n".join(rows(client))


def test_no_route_is_open_except_probes(client: FlaskClient) -> None:
    for row in rows(client):
        route, *cells = (cell.strip() for cell in row.strip("| ").split("|"))
        if route in ("`GET /healthz`", "`GET /readyz`"):
            continue
        assert cells[:2] == ["401", "401"], route
        assert cells[4] == "yes", route
        if route.split()[0] != "`GET":
            assert cells[2] == "403", route
