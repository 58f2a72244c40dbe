"""Keys against real processes: wrong ones are limited, valid ones never, and no log holds any."""

import hashlib
import secrets
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from services.logs import SHOWN_PARAMETERS, mask_secrets
from tests.api_client import client_of
from tests.contract.api_server import ApiServer, api_server
from tests.redis_server import Server

ROUTES = ("/api/jobs", "/api/models", "/v1/models", "/metrics")

VALID = f"valid-{secrets.token_hex(16)}"


class Keyed(NamedTuple):
    """An API with one key, and its Redis."""

    api: ApiServer
    redis: Server
    http: httpx.Client

    def status(self, key: str, path: str = "/api/jobs") -> int:
        """Returns the status of a request with a key."""
        headers = {"Authorization": f"Bearer {key}"}
        return self.http.get(path, headers=headers).status_code


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys"
    keys.write_text(f"{hashlib.sha256(VALID.encode()).hexdigest()} admin the admin\n")
    redis = Server(folder / "redis")
    redis.folder.mkdir()
    redis.start()
    try:
        with (
            api_server(folder, API_KEYS_FILE=str(keys), REDIS_URL=redis.url) as api,
            httpx.Client(base_url=api.url, trust_env=False, timeout=30) as http,
        ):
            yield Keyed(api, redis, http)
    finally:
        redis.stop()


def test_wrong_keys_are_limited_and_valid_ones_are_not(keyed: Keyed) -> None:
    found: Counter[int] = Counter()
    for number in range(90):
        found[keyed.status(f"wrong-{number}", ROUTES[number % len(ROUTES)])] += 1
        if number % 20 == 0:
            assert keyed.status(VALID) == 200
    assert found[401] <= 20, "ten a minute with the same beginning, in two minutes at most"
    assert found[429] == 90 - found[401]
    assert keyed.status(f"other-{secrets.token_hex(8)}") == 401, "another beginning is counted apart"
    assert keyed.status(VALID) == 200


def test_guesses_with_many_beginnings_are_limited_too(keyed: Keyed) -> None:
    found = Counter(keyed.status(secrets.token_hex(16)) for _ in range(250))
    assert found[401] <= 200, "a hundred a minute"
    assert found[401] + found[429] == 250
    assert keyed.status(VALID) == 200


def test_no_log_and_no_redis_key_holds_a_key(keyed: Keyed) -> None:
    misplaced = f"misplaced-{secrets.token_hex(16)}"
    for path in (
        f"/api/jobs?api_key={VALID}", f"/api/jobs?{misplaced}", f"/api/jobs?{misplaced}=1", f"/api/jobs?kind=merge&key={misplaced}",
        f"/healthz?token={misplaced}",
    ):  # fmt: skip
        keyed.status(misplaced, path)
        keyed.status(VALID, path)
    malformed = f"GET /api/jobs?key={misplaced} HTTP/9.9\r\nAuthorization Bearer {misplaced}\r\n\r\n"
    send_raw(keyed, malformed)
    send_raw(keyed, f"GET /api/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer {misplaced}\r\n\r\n")
    written = keyed.api.log.read_text()
    stored = b" ".join(path.read_bytes() for path in Path(keyed.redis.folder).rglob("*") if path.is_file())
    for key in (VALID, misplaced, "wrong-7"):
        assert key not in written
        assert key.encode() not in stored
    assert "/api/jobs?kind=merge&***" in written


def send_raw(keyed: Keyed, text: str) -> None:
    with socket.create_connection(("127.0.0.1", keyed.api.port), timeout=20) as client:
        client.sendall(text.encode())
        client.recv(65536)


def test_the_shown_parameters_are_those_of_the_document(tmp_path: Path) -> None:
    document = client_of(tmp_path).get("/openapi.json").get_json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    named = {
        p["name"] for operation in operations for p in operation.get("parameters", []) if p["in"] == "query"
    }
    assert named == SHOWN_PARAMETERS


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ('"GET /api/jobs?kind=merge&limit=3 HTTP/1.1" 200', None),
        ('"GET /?key=abc HTTP/1.1" 200', '"GET /?*** HTTP/1.1" 200'),
        ('"GET /?abc HTTP/1.1" 200', '"GET /?*** HTTP/1.1" 200'),
        (
            "Invalid HTTP Header: 'Authorization Bearer abc'",
            "Invalid HTTP Header: 'Authorization Bearer ***'",
        ),
        ("Starting gunicorn 27.0.1", None),
    ],
)
def test_a_line_is_masked(line: str, masked: str | None) -> None:
    assert mask_secrets(line) == (masked or line)
