"""The pages of jobs: rows, filters, paging, hostile texts."""

import html
import json
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from flask.testing import FlaskClient
from pydantic import SecretStr

from tests.api_client import client_of, import_request

pytestmark = pytest.mark.disable_socket

HOSTILE = "<img src=x onerror=alert(1)>\"&'"
ESCAPED = "&lt;img src=x onerror=alert(1)&gt;"
ROW = re.compile(r'id="job-([0-9a-f-]{36})"')


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    return client_of(tmp_path)


def submitted(client: FlaskClient, root: Path, target: str, **more: Any) -> str:
    answer = client.post("/api/jobs", json=import_request(root, target, **more))
    assert answer.status_code == 202, answer.text
    return str(answer.json["id"])


def hrefs(text: str) -> dict[str, str]:
    """Returns the addresses of the pager by its texts."""
    found = re.findall(r'href="([^"]+)" hx-get="[^"]+">(\w+)</a>', text)
    return {name: address.replace("&amp;", "&") for address, name in found}


# ---- board --------------------------------------------------------------------------------------------


def test_an_empty_board_says_what_to_do(client: FlaskClient) -> None:
    text = client.get("/jobs").text
    assert "No jobs yet" in text
    assert 'href="/merge"' in text


def test_a_row_has_kind_source_target_and_what_it_waits_for(client: FlaskClient, tmp_path: Path) -> None:
    job_id = submitted(client, tmp_path, "llama")
    text = client.get("/jobs").text
    assert ROW.findall(text) == [job_id]
    assert "incoming/llama" in text
    assert "No convert worker is alive." in text
    assert f'href="/jobs/{job_id}"' in text


def test_the_filters_of_the_address_select_and_are_shown(client: FlaskClient, tmp_path: Path) -> None:
    one, other = submitted(client, tmp_path, "one"), submitted(client, tmp_path, "two")
    client.post(f"/api/jobs/{other}/cancel")
    assert ROW.findall(client.get("/jobs?status=queued").text) == [one]
    assert ROW.findall(client.get("/jobs?status=canceled&kind=import").text) == [other]
    assert ROW.findall(client.get("/jobs?model=TWO").text) == [other]
    text = client.get("/jobs?kind=merge").text
    assert ROW.findall(text) == []
    assert "No job matches the filter." in text
    assert '<option value="merge" selected>' in text


@pytest.mark.parametrize("query", ["kind=nothing", "status=asleep", "after=%25"])
def test_an_unknown_filter_is_refused(client: FlaskClient, query: str) -> None:
    answer = client.get(f"/jobs?{query}")
    assert answer.status_code == 422
    assert 'role="alert"' in answer.text


def test_a_fragment_is_the_board_alone_under_the_address_of_its_filter(
    client: FlaskClient, tmp_path: Path
) -> None:
    submitted(client, tmp_path, "llama")
    answer = client.get("/jobs?kind=import&status=&model=", headers={"HX-Request": "true"})
    assert answer.headers["HX-Push-Url"] == "/jobs?kind=import"
    assert answer.text.lstrip().startswith('<div id="board"')
    current = {"HX-Request": "true", "HX-Current-URL": "http://127.0.0.1:8000/jobs?kind=import"}
    assert "HX-Push-Url" not in client.get("/jobs?kind=import", headers=current).headers
    assert "<html" not in answer.text


def test_a_page_that_the_browser_goes_back_to_is_complete(client: FlaskClient) -> None:
    headers = {"HX-Request": "true", "HX-Request-Type": "full", "HX-History-Restore-Request": "true"}
    assert "<html" in client.get("/jobs", headers=headers).text


@pytest.mark.parametrize("query", ["", "?kind=import"])
def test_older_and_newer_pages_show_every_job_once(client: FlaskClient, tmp_path: Path, query: str) -> None:
    ids = [submitted(client, tmp_path, f"model-{number}") for number in range(103)][::-1]
    address, pages = f"/jobs{query}", []
    for _ in range(3):
        text = client.get(address).text
        pages.append(ROW.findall(text))
        last, address = address, hrefs(text).get("Older", "")
    assert pages == [ids[:50], ids[50:100], ids[100:]]
    assert address == ""
    second = hrefs(client.get(last).text)["Newer"]
    assert ROW.findall(client.get(second).text) == ids[50:100]
    assert hrefs(client.get(second).text)["Newer"] == f"/jobs{query}"


def test_rows_of_some_jobs_are_marked_if_the_filter_selects_them(client: FlaskClient, tmp_path: Path) -> None:
    one, other = submitted(client, tmp_path, "one"), submitted(client, tmp_path, "two")
    unknown = "00000000-0000-4000-8000-000000000000"
    text = client.get(f"/jobs/rows?id={other}&id={unknown}&id={one}&model=one&kind=&status=").text
    assert ROW.findall(text) == [other, one]
    assert text.count("data-selected") == 1


def test_a_row_of_an_id_that_is_not_a_uuid_is_not_found(client: FlaskClient) -> None:
    assert client.get("/jobs/rows?id=x").status_code == 404


# ---- page of a job ------------------------------------------------------------------------------------


def test_the_page_of_a_job_shows_request_and_timeline(client: FlaskClient, tmp_path: Path) -> None:
    first = submitted(client, tmp_path, "llama")
    second = submitted(client, tmp_path, "other", after=[first])
    text = client.get(f"/jobs/{second}").text
    assert "incoming/llama" in text
    assert "Submitted" in text
    assert f'href="/jobs/{first}"' in text
    assert f'href="/jobs/{second}"' in client.get(f"/jobs/{first}").text


def test_an_unknown_job_is_an_error_page(client: FlaskClient) -> None:
    answer = client.get("/jobs/00000000-0000-4000-8000-000000000000")
    assert answer.status_code == 404
    assert "<html" in answer.text


def test_hostile_metadata_and_log_lines_are_text(tmp_path: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    client = client_of(tmp_path, redis=redis)
    job_id = submitted(client, tmp_path, "llama", metadata={HOSTILE[:60]: HOSTILE})
    redis.rpush(f"graftwerk:log:{job_id}", f"2026-11-27T10:00:00Z </pre>{HOSTILE}")
    text = client.get(f"/jobs/{job_id}").text
    assert HOSTILE not in text
    assert text.count(ESCAPED) == 3
    assert f"&lt;/pre&gt;{ESCAPED}" in text


def test_the_request_is_carried_for_copying_without_breaking_out_of_its_attribute(
    client: FlaskClient, tmp_path: Path
) -> None:
    job_id = submitted(client, tmp_path, "llama")
    text = client.get(f"/jobs/{job_id}").text
    carried = re.search(r'data-request="([^"]*)"', text)
    assert carried
    assert json.loads(html.unescape(carried[1])) == {
        "kind": "import",
        "source": {"path": "incoming/llama"},
        "target": "llama",
    }


# ---- roles and webhooks -------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "actions"), [("read", []), ("submit", ["cancel"]), ("admin", ["cancel"])])
def test_a_role_sees_only_the_actions_that_it_may_use(tmp_path: Path, role: str, actions: list[str]) -> None:
    keys = tmp_path / "keys"
    lines = [f"{sha256(name.encode()).hexdigest()} {name} {name}" for name in ("read", "submit", "admin")]
    keys.write_text("\n".join(lines))
    client = client_of(tmp_path / "models", api_keys_file=keys)
    (tmp_path / "models").mkdir()
    request = import_request(tmp_path / "models")
    admin, own = ({"Authorization": f"Bearer {name}"} for name in ("admin", role))
    job_id = client.post("/api/jobs", json=request, headers=admin).get_json()["id"]
    for path in ("/jobs", f"/jobs/{job_id}"):
        assert (
            re.findall('data-action="(cancel|retry|delete)"', client.get(path, headers=own).text) == actions
        )
    client.post(f"/api/jobs/{job_id}/cancel", headers=admin)
    ended = {"read": [], "submit": ["retry"], "admin": ["retry", "delete"]}[role]
    for path in ("/jobs", f"/jobs/{job_id}"):
        assert re.findall('data-action="(cancel|retry|delete)"', client.get(path, headers=own).text) == ended


def test_deliveries_of_a_webhook_are_listed_with_their_attempts(tmp_path: Path) -> None:
    redis = FakeRedis(server=FakeServer())
    secret = "whsec_" + b64encode(b"x" * 32).decode()
    client = client_of(tmp_path, redis=redis, webhook_secret=SecretStr(secret))
    job_id = submitted(client, tmp_path, "llama", webhook={"url": "https://example.org/hook?a=<b>"})
    attempt = {"at": "2026-11-27T10:00:00Z", "seconds": 0.2, "status_code": None, "error": HOSTILE}
    delivery = {
        "id": "msg_1", "event": "job.canceled", "url": "https://example.org/hook", "status": "failed",
        "created_at": "2026-11-27T10:00:00Z", "next_attempt_at": None, "attempts": [attempt],
    }  # fmt: skip
    redis.hset(f"graftwerk:deliveries:{job_id}", "msg_1", json.dumps(delivery))
    text = client.get(f"/jobs/{job_id}").text
    assert "https://example.org/hook?a=&lt;b&gt;" in text
    assert 'data-delivery="msg_1"' in text
    assert ESCAPED in text
    assert HOSTILE not in text
