"""Sign-in over real HTTP: two processes, a real Redis, a client that keeps cookies as a browser does."""

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.api_client import import_request
from tests.contract.api_server import ApiServer, api_server
from tests.redis_server import Server

KEYS = {name: f"{name}-{secrets.token_hex(16)}" for name in ("admin", "submit")}
COOKIE = "graftwerk_session"


class Keyed(NamedTuple):
    """An API with keys, its volume, its key file and its Redis."""

    api: ApiServer
    models: Path
    keys: Path
    redis: Server

    def browser(self) -> httpx.Client:
        """Returns a client with cookies of its own."""
        return httpx.Client(base_url=self.api.url, trust_env=False, timeout=30)


def lines(*names: str) -> str:
    return "".join(f"{hashlib.sha256(KEYS[name].encode()).hexdigest()} {name} {name}\n" for name in names)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("signed-in")
    keys = folder / "keys"
    keys.write_text(lines(*KEYS))
    redis = Server(folder / "redis")
    redis.folder.mkdir()
    redis.start()
    try:
        with api_server(folder, API_KEYS_FILE=str(keys), REDIS_URL=redis.url) as api:
            yield Keyed(api, folder / "models", keys, redis)
    finally:
        redis.stop()


@pytest.fixture
def browser(keyed: Keyed) -> Iterator[httpx.Client]:
    with keyed.browser() as client:
        yield client


def sign_in(browser: httpx.Client, name: str = "admin", next: str = "/") -> httpx.Response:
    return browser.post("/login", data={"key": KEYS[name], "next": next})


def token(browser: httpx.Client) -> dict[str, str]:
    return {"X-CSRF-Token": browser.get("/api/session").json()["csrf_token"]}


def test_a_person_signs_in_submits_follows_a_stream_and_signs_out(
    keyed: Keyed, browser: httpx.Client
) -> None:
    opened = browser.get("/", follow_redirects=True)
    assert (opened.url.path, opened.status_code) == ("/login", 200)
    assert browser.get("/api/jobs").status_code == 401
    assert sign_in(browser, "submit").headers["Location"] == "/"
    for _ in range(6):  # both processes
        assert browser.get("/").status_code == 200
        assert browser.get("/api/session").json()["name"] == "submit"
    body = import_request(keyed.models, "by-cookie")
    assert browser.post("/api/jobs", json=body).status_code == 403
    assert browser.post("/api/jobs", json=body, headers={"X-CSRF-Token": "x"}).status_code == 403
    submitted = browser.post("/api/jobs", json=body, headers=token(browser))
    assert submitted.status_code == 202
    with browser.stream("GET", f"{submitted.headers['Location']}/events") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert next(stream.iter_lines()).startswith(("id:", "event:", ":"))
    assert browser.post("/logout", headers=token(browser)).headers["Location"] == "/login"
    assert COOKIE not in browser.cookies
    assert browser.get("/api/jobs").status_code == 401


def test_a_page_of_another_site_changes_nothing(keyed: Keyed, browser: httpx.Client) -> None:
    elsewhere = {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}
    form = {"key": KEYS["admin"]}
    assert browser.post("/login", data=form, headers=elsewhere).status_code == 403
    assert COOKIE not in browser.cookies
    sign_in(browser)
    for headers in (elsewhere, {**elsewhere, **token(browser)}):
        assert browser.delete("/api/models/absent", headers=headers).status_code == 403
        assert browser.post("/logout", headers=headers).status_code == 403
    assert browser.delete("/api/models/absent", headers=token(browser)).status_code == 404


def test_a_copied_cookie_ends_with_the_session(keyed: Keyed, browser: httpx.Client) -> None:
    sign_in(browser)
    with keyed.browser() as thief:
        thief.cookies.set(COOKIE, browser.cookies[COOKIE])
        assert {thief.get("/api/jobs").status_code for _ in range(6)} == {200}
        browser.post("/logout", headers=token(browser))
        assert {thief.get("/api/jobs").status_code for _ in range(6)} == {401}


def test_a_removed_key_ends_its_sessions_in_every_process(keyed: Keyed, browser: httpx.Client) -> None:
    sign_in(browser, "submit")
    assert {browser.get("/api/jobs").status_code for _ in range(6)} == {200}
    keyed.keys.write_text(lines("admin"))
    try:
        assert {browser.get("/api/jobs").status_code for _ in range(12)} == {401}
        assert sign_in(browser, "submit").status_code == 401
    finally:
        keyed.keys.write_text(lines(*KEYS))
    assert sign_in(browser, "submit").status_code == 303


@pytest.mark.parametrize(
    "address",
    ["//evil.example", "https://evil.example", "/\\evil.example", "/%09/evil.example", "/\r\nX-Forged: 1"],
)
def test_the_sign_in_never_leads_to_another_site(browser: httpx.Client, address: str) -> None:
    response = sign_in(browser, next=address)
    assert response.status_code == 303
    assert "X-Forged" not in response.headers
    assert response.next_request is not None
    assert response.next_request.url.host == "127.0.0.1"
    assert browser.get("/login", params={"next": address}).next_request.url.host == "127.0.0.1"


def test_no_log_holds_a_key_a_cookie_or_a_token(keyed: Keyed, browser: httpx.Client) -> None:
    sign_in(browser)
    used = [*KEYS.values(), browser.cookies[COOKIE], *token(browser).values()]
    mistyped = f"mistyped-{secrets.token_hex(8)}"
    assert browser.post("/login", data={"key": mistyped}).status_code == 401
    browser.get("/login", params={"key": mistyped, "next": f"/?key={mistyped}"})
    written = keyed.api.log.read_text()
    stored = b" ".join(path.read_bytes() for path in Path(keyed.redis.folder).rglob("*") if path.is_file())
    for secret in (*used, mistyped):
        assert secret not in written
        assert secret.encode() not in stored
    assert '"POST /login HTTP/1.1" 401' in written
