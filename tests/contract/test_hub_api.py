"""`/api/hub`: search and repositories, with the Hub's own client library against a local server."""

import hashlib
from pathlib import Path

from tests.api_client import client_of, problem
from tests.contract.hub_models import FETCHED, FILES
from tests.hub_server import HubServer, Repo


def test_a_search_lists_what_the_hub_finds(tmp_path: Path, hub: HubServer) -> None:
    hub.repos["other/thing"] = Repo()
    hub.repos["other/renamed"] = Repo()
    client = client_of(tmp_path, hub_enabled=True, hf_endpoint=hub.url)
    found = client.get("/api/hub/models?search=NAME").get_json()["models"]
    assert [model["id"] for model in found] == ["org/name", "other/renamed"]
    assert (found[0]["downloads"], found[0]["gated"], found[0]["private"]) == (7, False, False)
    assert len(client.get("/api/hub/models?search=name&limit=1").get_json()["models"]) == 1
    problem(client.get("/api/hub/models"), 422, "invalid_request")


def test_a_repository_lists_its_files_and_those_that_are_fetched(tmp_path: Path, hub: HubServer) -> None:
    client = client_of(tmp_path, hub_enabled=True, hf_endpoint=hub.url)
    found = client.get("/api/hub/models/org/name?revision=main").get_json()
    assert (found["id"], found["commit"]) == ("org/name", hub.repos["org/name"].branches["main"])
    assert {(f["path"], f["size_bytes"], f["selected"]) for f in found["files"]} == {
        (path, len(content), path in FETCHED) for path, content in FILES.items()
    }
    assert found["selected_bytes"] == sum(len(FILES[path]) for path in FETCHED)
    assert found["problem"] is None


def test_a_repository_from_which_a_file_must_be_chosen_is_listed_with_the_reason(
    tmp_path: Path, hub: HubServer
) -> None:
    hub.repos["org/gguf"] = Repo()
    hub.repos["org/gguf"].commit({"m-Q4_K_M.gguf": b"1", "m-Q8_0.gguf": b"22"})
    found = (
        client_of(tmp_path, hub_enabled=True, hf_endpoint=hub.url).get("/api/hub/models/org/gguf").get_json()
    )
    assert (found["problem"]["code"], found["size_bytes"], found["selected_bytes"]) == (
        "invalid_request",
        3,
        0,
    )
    assert "m-Q4_K_M.gguf, m-Q8_0.gguf" in found["problem"]["detail"]


def test_the_codes_are_those_of_an_import(tmp_path: Path, hub: HubServer) -> None:
    client = client_of(tmp_path, hub_enabled=True, hf_endpoint=hub.url)
    problem(client.get("/api/hub/models/org/gone"), 404, "hub_not_found")
    problem(client.get("/api/hub/models/org/name?revision=v9"), 404, "hub_not_found")
    problem(client.get("/api/hub/models/org/a--b"), 422, "invalid_request")
    problem(client_of(tmp_path).get("/api/hub/models/org/name"), 422, "hub_disabled")
    problem(client_of(tmp_path).get("/api/hub/models?search=name"), 422, "hub_disabled")
    hub.repos["org/name"].gated = True
    problem(client.get("/api/hub/models/org/name"), 403, "hub_gated")
    hub.failing = 502
    problem(client.get("/api/hub/models/org/name"), 503, "hub_unreachable")
    problem(client.get("/api/hub/models?search=name"), 503, "hub_unreachable")


def test_a_key_that_may_read_suffices(tmp_path: Path, hub: HubServer) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{hashlib.sha256(b'reader').hexdigest()} read someone\n")
    client = client_of(tmp_path, hub_enabled=True, hf_endpoint=hub.url, api_keys_file=keys)
    problem(client.get("/api/hub/models/org/name"), 401, "unauthorized")
    allowed = client.get("/api/hub/models/org/name", headers={"Authorization": "Bearer reader"})
    assert allowed.status_code == 200
