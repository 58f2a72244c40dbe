"""Sign-in of people: the form, the cookie of the session, its lifetime, the token against forged requests."""

import hashlib
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from services.errors import InvalidSettings
from tests.api_client import client_of, import_request, problem, put_model

pytestmark = pytest.mark.disable_socket

ROLES = ("read", "submit", "admin")
UNKNOWN_JOB = "/api/jobs/00000000-0000-4000-8000-000000000000"


def line(role: str) -> str:
    return f"{hashlib.sha256(f'key-{role}'.encode()).hexdigest()} {role} the {role}er\n"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("".join(map(line, ROLES)))
    return path


@pytest.fixture
def client(tmp_path: Path, keys: Path) -> FlaskClient:
    put_model(tmp_path / "models", "zh")
    return client_of(tmp_path / "models", api_keys_file=keys)


def sign_in(client: FlaskClient, key: str = "key-admin", next: str = "", **more: str) -> TestResponse:
    return client.post("/login", data={"key": key, "next": next}, headers=more)


def csrf(client: FlaskClient) -> dict[str, str]:
    return {"X-CSRF-Token": client.get("/api/session").get_json()["csrf_token"]}


def cookie_of(client: FlaskClient) -> str:
    cookie = client.get_cookie("graftwerk_session")
    assert cookie is not None
    return cookie.value


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Moves the clock of the sessions."""
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + seconds)


# ---- signing in ---------------------------------------------------------------------------------------


def test_a_page_sends_a_person_to_the_form_and_the_form_back_to_the_page(client: FlaskClient) -> None:
    redirected = client.get("/?kind=merge")
    assert (redirected.status_code, redirected.headers["Location"]) == (303, "/login?next=/%3Fkind%3Dmerge")
    form = client.get(redirected.headers["Location"])
    assert form.status_code == 200
    assert re.findall(r'name="next" value="([^"]*)"', form.text) == ["/?kind=merge"]
    signed_in = sign_in(client, next="/?kind=merge")
    assert (signed_in.status_code, signed_in.headers["Location"]) == (303, "/?kind=merge")
    assert client.get("/?kind=merge").status_code == 200


@pytest.mark.parametrize("role", ROLES)
def test_a_session_has_the_role_of_its_key(client: FlaskClient, role: str) -> None:
    sign_in(client, f"key-{role}")
    state = client.get("/api/session").get_json()
    assert (state["name"], state["role"]) == (f"the {role}er", role)
    canceled = client.post(f"{UNKNOWN_JOB}/cancel", headers=csrf(client))
    assert canceled.status_code == (403 if role == "read" else 404)
    deleted = client.delete("/api/models/zh", headers=csrf(client))
    assert deleted.status_code == (204 if role == "admin" else 403)


def test_a_session_reads_the_api_the_downloads_and_the_openai_endpoints(
    client: FlaskClient, tmp_path: Path
) -> None:
    put_model(tmp_path / "models", "en", {"config.json": "{}"})
    urls = ("/api/jobs", "/api/models", "/api/models/en/files/config.json", "/v1/models", "/metrics")
    assert {client.get(url).status_code for url in urls} == {401}
    sign_in(client, "key-read")
    assert {client.get(url, buffered=True).status_code for url in urls} == {200}


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(client: FlaskClient) -> None:
    header = sign_in(client).headers["Set-Cookie"]
    value, *attributes = header.split("; ")
    assert value.startswith("graftwerk_session=")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=43200"} <= set(attributes)
    assert "Secure" not in attributes
    assert not any(attribute.startswith("Domain") for attribute in attributes)
    digest = hashlib.sha256(b"key-admin").hexdigest()
    assert "key-admin" not in header
    assert digest not in header


def test_the_cookie_is_secure_under_https(client: FlaskClient) -> None:
    behind_a_proxy = {"X-Forwarded-Proto": "https"}
    assert "Secure" in sign_in(client, **behind_a_proxy).headers["Set-Cookie"].split("; ")
    direct = client.post("/login", data={"key": "key-admin"}, base_url="https://localhost")
    assert "Secure" in direct.headers["Set-Cookie"].split("; ")


def test_a_wrong_key_is_401_with_the_form_and_no_cookie(client: FlaskClient) -> None:
    response = sign_in(client, "<key>", "/?a=1")
    assert (response.status_code, response.mimetype) == (401, "text/html")
    assert "This key is unknown" in response.text
    assert 'value="/?a=1"' in response.text
    assert "key&gt;" not in response.text
    assert "Set-Cookie" not in response.headers
    assert response.headers["Cache-Control"] == "no-store"


def test_wrong_keys_in_the_form_and_in_headers_are_limited_together(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    later(monkeypatch, 0)
    for number in range(5):
        assert sign_in(client, f"wrong-{number}").status_code == 401
        client.get("/api/jobs", headers={"Authorization": f"Bearer wrong-{number}"})
    refused = sign_in(client, "wrong-7")
    assert (refused.status_code, refused.mimetype) == (429, "text/html")
    assert refused.headers["Retry-After"] == "60"
    assert "Wait 60 seconds" in refused.text
    assert "Set-Cookie" not in refused.headers
    assert sign_in(client).status_code == 303


@pytest.mark.parametrize(
    "address",
    [
        "//evil.example", "https://evil.example/", "/\\evil.example", "\\\\evil.example", "/\t/evil.example", "/\n/evil.example",
        "javascript:alert(1)", "evil.example", "", "/login", "/login?next=/", "/a b", "///evil.example", "http:/evil.example",
        "/" + "a" * 3000,
    ],
)  # fmt: skip
def test_no_address_leads_to_another_site(client: FlaskClient, address: str) -> None:
    assert sign_in(client, next=address).headers["Location"] == "/"
    assert client.get("/login", query_string={"next": address}).headers["Location"] == "/"


@pytest.mark.parametrize("address", ["/models/zh", "/jobs?kind=merge&status=failed", "/jobs#newest", "/a//b"])
def test_the_sign_in_leads_to_any_path_of_the_service(client: FlaskClient, address: str) -> None:
    location = sign_in(client, next=address).headers["Location"]
    assert location == address
    assert urlsplit(location).netloc == ""


def test_a_long_form_is_refused(client: FlaskClient) -> None:
    assert sign_in(client, "k" * 20_000).status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"},
    ],
)  # fmt: skip
def test_a_page_of_another_site_signs_no_one_in(client: FlaskClient, headers: dict[str, str]) -> None:
    refused = sign_in(client, **headers)
    assert (refused.status_code, refused.mimetype) == (403, "text/html")
    assert client.get_cookie("graftwerk_session") is None


# ---- changes by cookie --------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "", "x", "ключ"])
def test_a_change_by_cookie_needs_the_token(client: FlaskClient, token: str | None) -> None:
    sign_in(client)
    headers = {} if token is None else {"X-CSRF-Token": token}
    for method, url in (
        ("DELETE", "/api/models/zh"), ("POST", "/api/jobs"), ("PUT", UNKNOWN_JOB), ("POST", "/v1/completions"),
        ("POST", "/api/uploads"),
    ):  # fmt: skip
        response = client.open(url, method=method, headers=headers)
        assert response.status_code == 403, url
        assert "X-CSRF-Token" in response.text
    assert client.get("/api/models/zh").status_code == 200


def test_the_token_of_another_session_is_refused(client: FlaskClient, tmp_path: Path, keys: Path) -> None:
    sign_in(client)
    other = client.application.test_client()
    sign_in(other)
    problem(client.delete("/api/models/zh", headers=csrf(other)), 403, "forbidden")
    assert client.delete("/api/models/zh", headers=csrf(client)).status_code == 204


def test_another_site_changes_nothing_even_with_the_token(client: FlaskClient) -> None:
    sign_in(client)
    headers = {**csrf(client), "Sec-Fetch-Site": "cross-site"}
    problem(client.delete("/api/models/zh", headers=headers), 403, "forbidden")


def test_a_change_by_key_needs_no_token_and_ignores_the_cookie(client: FlaskClient) -> None:
    sign_in(client, "key-read")
    deleted = client.delete("/api/models/zh", headers={"Authorization": "Bearer key-admin"})
    assert deleted.status_code == 204
    problem(client.get("/api/jobs", headers={"Authorization": "Bearer wrong"}), 401, "unauthorized")


def test_jobs_by_cookie_count_as_jobs_of_the_key(tmp_path: Path, keys: Path) -> None:
    models = tmp_path / "models"
    client = client_of(models, api_keys_file=keys, queue_limit_per_key=1)
    by_key = {"Authorization": "Bearer key-submit"}
    assert client.post("/api/jobs", json=import_request(models), headers=by_key).status_code == 202
    sign_in(client, "key-submit")
    refused = client.post("/api/jobs", json=import_request(models, "b"), headers=csrf(client))
    assert refused.status_code == 429


# ---- the end of a session -----------------------------------------------------------------------------


def test_signing_out_ends_copied_cookies_too(client: FlaskClient) -> None:
    sign_in(client)
    thief = client.application.test_client()
    thief.set_cookie("graftwerk_session", cookie_of(client))
    assert thief.get("/api/jobs").status_code == 200
    response = client.post("/logout", headers=csrf(client))
    assert (response.status_code, response.headers["Location"]) == (303, "/login")
    assert client.get_cookie("graftwerk_session") is None
    problem(thief.get("/api/jobs"), 401, "unauthorized")
    assert thief.get("/").status_code == 303


def test_signing_out_by_a_form_takes_the_token_as_a_field(client: FlaskClient) -> None:
    sign_in(client)
    assert client.post("/logout").status_code == 403
    assert client.post("/logout", data={"csrf_token": "x"}).status_code == 403
    assert client.get("/api/jobs").status_code == 200
    token = csrf(client)["X-CSRF-Token"]
    assert client.post("/logout", data={"csrf_token": token}).status_code == 303
    assert client.get("/api/jobs").status_code == 401
    assert client.post("/logout").status_code == 303


def test_a_session_ends_when_its_key_leaves_the_file(client: FlaskClient, keys: Path) -> None:
    sign_in(client)
    keys.write_text(line("read"))
    problem(client.get("/api/jobs"), 401, "unauthorized")
    problem(client.get("/api/jobs", headers={"Authorization": "Bearer key-admin"}), 401, "unauthorized")
    assert client.get("/").status_code == 303


def test_a_session_gets_the_role_that_its_key_gets(client: FlaskClient, keys: Path) -> None:
    sign_in(client)
    keys.write_text(line("admin").replace(" admin ", " read "))
    assert client.get("/api/session").get_json()["role"] == "read"
    problem(client.delete("/api/models/zh", headers=csrf(client)), 403, "forbidden")


def test_a_key_file_that_becomes_invalid_accepts_no_key_until_it_is_repaired(
    client: FlaskClient, keys: Path
) -> None:
    sign_in(client)
    valid = keys.read_text()
    keys.write_text(valid + "oops\n")
    found = problem(client.get("/api/jobs"), 503, "not_ready")
    assert "Line 4" in found["detail"]
    assert sign_in(client).status_code == 503
    assert client.get("/healthz").status_code == 200
    keys.unlink()
    problem(client.get("/api/jobs", headers={"Authorization": "Bearer key-read"}), 503, "not_ready")
    keys.write_text(valid)
    assert client.get("/api/jobs").status_code == 200


@pytest.mark.parametrize(("hours", "status"), [(11.9, 200), (12.1, 401)])
def test_an_unused_session_lasts_12_hours(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, hours: float, status: int
) -> None:
    sign_in(client)
    cookie = cookie_of(client)
    later(monkeypatch, hours * 3600)
    fresh = client.application.test_client()
    fresh.set_cookie("graftwerk_session", cookie)
    assert fresh.get("/api/jobs").status_code == status


def test_a_used_session_is_renewed_for_7_days_at_most(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in(client)
    assert "Set-Cookie" not in client.get("/api/jobs").headers
    statuses = []
    for _ in range(15):
        later(monkeypatch, 11.9 * 3600)
        statuses.append(client.get("/api/jobs").status_code)
    assert statuses == [200] * 14 + [401], "14 times 11.9 hours are 6.9 days"


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-2], lambda text: "a" + text, lambda _: "x", lambda _: "é.b.c"]
)
def test_a_changed_cookie_is_no_session(client: FlaskClient, damage: object) -> None:
    assert callable(damage)
    sign_in(client)
    client.set_cookie("graftwerk_session", damage(cookie_of(client)))
    assert client.get("/api/jobs").status_code == 401


def test_a_cookie_of_another_secret_is_no_session(tmp_path: Path, keys: Path) -> None:
    one, other = (
        client_of(tmp_path, api_keys_file=keys, session_secret=f"{name} " * 8) for name in ("one", "other")
    )
    sign_in(one)
    other.set_cookie("graftwerk_session", cookie_of(one))
    assert other.get("/api/jobs").status_code == 401


# ---- the secret ---------------------------------------------------------------------------------------


def test_processes_with_one_redis_or_one_secret_share_sessions(tmp_path: Path, keys: Path) -> None:
    server = FakeServer()
    (tmp_path / "secret").write_text("0123456789abcdef\n")
    for more in ({}, {"session_secret": "0123456789abcdef"}, {"session_secret_file": tmp_path / "secret"}):
        one, other = (
            client_of(tmp_path, api_keys_file=keys, redis=FakeRedis(server=server), **more) for _ in range(2)
        )
        sign_in(one)
        other.set_cookie("graftwerk_session", cookie_of(one))
        assert other.get("/api/jobs").status_code == 200
    assert len(FakeRedis(server=server).get("graftwerk:session-secret") or b"") == 64


def test_a_short_or_unreadable_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="has 15 characters; at least 16") as caught:
        client_of(tmp_path, session_secret="0123456789abcde")
    assert "abcde" not in caught.value.message
    with pytest.raises(InvalidSettings, match="SESSION_SECRET_FILE cannot be read: No such file"):
        client_of(tmp_path, session_secret_file=tmp_path / "absent")


def test_without_redis_no_session_is_believed_and_keys_still_work(tmp_path: Path, keys: Path) -> None:
    server = FakeServer()
    client = client_of(tmp_path, api_keys_file=keys, redis=FakeRedis(server=server))
    sign_in(client)
    server.connected = False
    problem(client.get("/api/models"), 503, "not_ready")
    form = client.application.test_client().post("/login", data={"key": "key-read"})
    assert (form.status_code, form.mimetype) == (503, "text/html")
    assert "Redis does not answer" in form.text
    by_key = {"Authorization": "Bearer key-read"}
    assert client.application.test_client().get("/api/session", headers=by_key).status_code == 200


# ---- htmx, and no keys --------------------------------------------------------------------------------


def test_htmx_is_sent_to_the_form_and_from_there_to_its_page(client: FlaskClient) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://localhost/jobs?kind=merge"}
    for url in ("/", "/api/jobs"):
        response = client.get(url, headers=headers)
        assert response.status_code == 401
        assert response.headers["HX-Redirect"] == "/login?next=/jobs%3Fkind%3Dmerge"
    for strange in ("http://[", "http://evil.example//evil.example", ""):
        response = client.get("/", headers={"HX-Request": "true", "HX-Current-URL": strange})
        assert (response.status_code, response.headers["HX-Redirect"]) == (401, "/login")
    assert "HX-Redirect" not in client.get("/api/jobs").headers


def test_htmx_signs_out(client: FlaskClient) -> None:
    sign_in(client)
    response = client.post("/logout", headers={**csrf(client), "HX-Request": "true"})
    assert (response.status_code, response.headers["HX-Redirect"]) == (204, "/login")
    assert client.get("/api/jobs").status_code == 401


def test_without_keys_there_is_nothing_to_sign_in_to(tmp_path: Path) -> None:
    client = client_of(tmp_path)
    assert client.get("/login?next=/docs").headers["Location"] == "/docs"
    assert sign_in(client).headers["Location"] == "/"
    assert client.get_cookie("graftwerk_session") is None
    assert client.get("/").status_code == 200
    assert client.get("/api/session").get_json() == {"name": None, "role": "admin", "csrf_token": ""}


TEMPLATE = (
    "{{ signed_in.name if signed_in else '-' }} {{ may('read') }} {{ may('submit') }} {{ may('admin') }}"
)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("key-read", "the reader True False False"),
        ("key-submit", "the submiter True True False"),
        ("key-admin", "the adminer True True True"),
    ],
)
def test_templates_know_who_is_signed_in_and_may_do_what(client: FlaskClient, key: str, shown: str) -> None:
    sign_in(client, key)
    assert rendered(client, cookie_of(client)) == shown


def test_templates_allow_everything_without_keys_and_nothing_without_a_session(
    client: FlaskClient, tmp_path: Path
) -> None:
    assert rendered(client, "") == "- False False False"
    assert rendered(client_of(tmp_path / "open"), "") == "- True True True"


def rendered(client: FlaskClient, cookie: str) -> str:
    from flask import render_template_string

    with client.application.test_request_context(headers={"Cookie": f"graftwerk_session={cookie}"}):
        return render_template_string(TEMPLATE)
