"""Access control: keys and roles; without keys only local clients and no pages of other sites."""

import hashlib
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from services.errors import InvalidSettings
from tests.api_client import client_of, import_request, problem, put_model

pytestmark = pytest.mark.disable_socket

UNKNOWN_JOB = "/api/jobs/00000000-0000-4000-8000-000000000000"


def write_keys(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys"
    path.write_text(text)
    return path


def line(key: str, role: str) -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()} {role} the {role}er\n"


@pytest.fixture
def keyed(tmp_path: Path) -> FlaskClient:
    keys = line("key-r", "read") + "\n# a comment\n" + line("key-s", "submit") + line("key-a", "admin").upper().replace(
        "ADMIN", "admin", 1
    )  # fmt: skip
    models_dir = tmp_path / "models"
    put_model(models_dir, "zh")
    return client_of(models_dir, api_keys_file=write_keys(tmp_path, keys), host="0.0.0.0")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- with keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic a2V5LXI6"}, {"Authorization": "Bearer "}])
def test_without_a_key_it_is_401_with_the_way_to_give_one(
    keyed: FlaskClient, headers: dict[str, str]
) -> None:
    for url in ("/api/jobs", "/api/models", "/api/events", "/api/system", "/metrics"):
        response = keyed.get(url, headers=headers)
        problem(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="Graftwerk API"'


@pytest.mark.parametrize("key", ["key-x", "", "key-r ", "ключ"])
def test_an_unknown_key_is_401(keyed: FlaskClient, key: str) -> None:
    response = keyed.get("/api/jobs", headers=bearer(f"-{key}-"))
    problem(response, 401, "unauthorized")
    assert response.www_authenticate.get("error") == "invalid_token"


@pytest.mark.parametrize(
    ("key", "may_submit", "may_delete"),
    [("key-r", False, False), ("key-s", True, False), ("key-a", True, True)],
)
def test_a_role_allows_its_methods_only(
    keyed: FlaskClient, key: str, may_submit: bool, may_delete: bool
) -> None:
    assert keyed.get("/api/jobs", headers=bearer(key)).status_code == 200
    submitted = keyed.post("/api/jobs", json={}, headers=bearer(key))
    canceled = keyed.post(f"{UNKNOWN_JOB}/cancel", headers=bearer(key))
    assert (submitted.status_code, canceled.status_code) == ((422, 404) if may_submit else (403, 403))
    deleted = keyed.delete("/api/models/zh", headers=bearer(key))
    assert deleted.status_code == (204 if may_delete else 403)


@pytest.mark.parametrize(
    ("query", "status"),
    [("?dry_run=true", 404), ("?dry_run=1", 403), ("?dry_run=true&dry_run=false", 403), ("?dry_run=false", 403), ("", 403)],
)  # fmt: skip
def test_who_may_read_may_plan_and_not_submit(keyed: FlaskClient, query: str, status: int) -> None:
    body = {"kind": "verify", "model": "missing"}
    assert keyed.post(f"/api/jobs{query}", json=body, headers=bearer("key-r")).status_code == status
    assert keyed.put(f"{UNKNOWN_JOB}?dry_run=true", json=body, headers=bearer("key-r")).status_code == 403


def test_an_insufficient_role_is_refused_with_the_needed_one(keyed: FlaskClient) -> None:
    found = problem(keyed.delete("/api/models/zh", headers=bearer("key-s")), 403, "forbidden")
    assert "'admin'" in found["detail"]
    assert "'submit'" in found["detail"]


@pytest.mark.parametrize(
    "url", ["/healthz", "/readyz", "/login", "/docs", "/openapi.json", "/static/scripts/page.js"]
)
def test_probes_the_sign_in_and_the_documentation_need_no_key(keyed: FlaskClient, url: str) -> None:
    assert keyed.get(url, buffered=True).status_code in (200, 503)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("secret read me\n", "Line 1"),
        (line("k", "read") + line("k", "root"), "Line 2"),
        ("# nothing\n\n", "contains no key"),
        (f"{'0' * 64} read\n", "Line 1"),
    ],
)
def test_a_malformed_key_file_is_refused_without_repeating_it(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidSettings, match=words) as caught:
        client_of(tmp_path, api_keys_file=write_keys(tmp_path, text))
    assert "secret" not in caught.value.message


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read: No such file"):
        client_of(tmp_path, api_keys_file=tmp_path / "absent")


# ---- without keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.org"])
def test_beyond_loopback_there_must_be_keys(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidSettings, match="beyond loopback"):
        client_of(tmp_path, host=host)
    assert client_of(tmp_path, host=host, behind_gateway=True).get("/api/jobs").status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://example.org", "http://localhost:9999", "null", "http://localhost.example.org"]
)
def test_a_page_of_another_site_changes_nothing(tmp_path: Path, origin: str) -> None:
    client = client_of(tmp_path)
    put_model(tmp_path, "zh")
    headers = {"Origin": origin}
    problem(client.post("/api/jobs", json=import_request(tmp_path), headers=headers), 403, "forbidden")
    problem(client.post(f"{UNKNOWN_JOB}/cancel", headers=headers), 403, "forbidden")
    problem(client.delete("/api/models/zh", headers=headers), 403, "forbidden")


def test_a_page_of_the_service_may_change_things(tmp_path: Path) -> None:
    headers = {"Origin": "http://localhost"}
    response = client_of(tmp_path).post("/api/jobs", json=import_request(tmp_path), headers=headers)
    assert response.status_code == 202


@pytest.mark.parametrize("host", ["rebound.example.org", "rebound.example.org:8000", "127.0.0.1.example.org"])
def test_a_public_name_that_resolves_to_this_machine_is_refused(tmp_path: Path, host: str) -> None:
    client = client_of(tmp_path)
    headers = {"Host": host, "Origin": f"http://{host}"}
    problem(client.get("/api/jobs", headers=headers), 403, "forbidden")
    problem(client.post("/api/jobs", json={}, headers=headers), 403, "forbidden")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost", "[::1]:8000", "api:8000", "host.docker.internal", "graft.localhost"],
)
def test_local_names_are_allowed(tmp_path: Path, host: str) -> None:
    assert client_of(tmp_path).get("/api/jobs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "", " ", "127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.0.0.1:", "127.0.0.1:8000:1", "127.0.0.1/x", "a b",
        "localhost#evil.example", "localhost,evil.example", "[::1", "::1", "-localhost", "localhost.", "локальный", "localhost\\@e",
    ],
)  # fmt: skip
def test_a_malformed_host_is_refused_with_and_without_keys(
    tmp_path: Path, keyed: FlaskClient, host: str
) -> None:
    for client, headers in ((client_of(tmp_path), {}), (keyed, bearer("key-a"))):
        response = client.get("/api/jobs", headers=headers, environ_overrides={"HTTP_HOST": host})
        problem(response, 400, "malformed_request")
        assert client.get("/healthz", environ_overrides={"HTTP_HOST": host}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "strange"])
def test_a_browser_of_another_site_changes_nothing_without_an_origin_too(tmp_path: Path, site: str) -> None:
    client = client_of(tmp_path)
    put_model(tmp_path, "zh")
    headers = {"Sec-Fetch-Site": site}
    for action in ("cancel", "retry"):
        problem(client.post(f"{UNKNOWN_JOB}/{action}", headers=headers), 403, "forbidden")
    problem(client.delete(UNKNOWN_JOB, headers=headers), 403, "forbidden")
    problem(client.delete("/api/models/zh", headers=headers), 403, "forbidden")
    assert client.get("/api/models/zh", headers=headers).status_code == 200


def test_a_page_with_a_key_may_be_anywhere(keyed: FlaskClient) -> None:
    headers = {**bearer("key-a"), "Sec-Fetch-Site": "cross-site"}
    assert keyed.delete("/api/models/zh", headers=headers).status_code == 204


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_the_service_s_own_page_may_change_things(tmp_path: Path, site: str) -> None:
    response = client_of(tmp_path).post(f"{UNKNOWN_JOB}/cancel", headers={"Sec-Fetch-Site": site})
    assert response.status_code == 404
