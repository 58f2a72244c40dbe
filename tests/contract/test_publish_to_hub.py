"""Uploads to a hub, with the Hub's own client library against a local server."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.errors import GraftwerkError, HubDisabled, HubGated, InvalidRequest, JobCanceled, UnsafeArchive
from services.kinds.publish_to_hub import PublishToHubRequest, PublishToHubResult
from services.progress import Progress
from tests.api_client import client_of, problem
from tests.contract.hub_child import hub_context
from tests.contract.hub_models import CONFIG, WEIGHTS
from tests.hub_server import HubServer, Repo
from worker.models import publish_to_hub

# huggingface_hub 2.4 passes a file as `data`, which httpx2 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

FILES = {
    "config.json": CONFIG, "model.safetensors": WEIGHTS, "tokenizer.model": b"pieces", "README.md": b"---\nlicense: mit\n---\n",
    "manifest.json": b"{}", "sub/notes.txt": b"",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "volume/merged" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "volume"


def asked(**fields: Any) -> dict[str, Any]:
    return {"kind": "publish-to-hub", "model": "merged", "repository": "org/new", **fields}


def run(
    root: Path,
    hub: HubServer,
    request: dict[str, Any] | None = None,
    *,
    token: str | None = None,
    **more: Any,
) -> PublishToHubResult:
    context = hub_context(root, hub.url, settings={"hub_token": token or hub.token}, **more)
    return publish_to_hub.run(PublishToHubRequest.model_validate(request or asked()), context)


def test_all_files_become_one_commit_of_a_private_repository(root: Path, hub: HubServer) -> None:
    reports: list[Progress] = []
    result = run(root, hub, report=reports.append)
    repo = hub.repos["org/new"]
    assert repo.private
    assert result.commit == repo.branches["main"]
    assert (result.url, result.private) == (f"{hub.url}/org/new", True)
    published = repo.commits[result.commit]
    assert {name: published[name] for name in FILES} == FILES
    assert set(published) == {*FILES, ".gitattributes"}
    total = sum(len(content) for content in FILES.values())
    assert (result.files, result.size_bytes) == (len(FILES), total)
    done = [report.done for report in reports if report.stage == "uploading"]
    assert done == sorted(done)
    assert done[-1] >= len(WEIGHTS)
    assert {(report.total, report.unit) for report in reports} == {(total, "bytes")}


def test_a_second_upload_adds_a_commit(root: Path, hub: HubServer) -> None:
    run(root, hub)
    (root / "merged/config.json").write_bytes(b"{}")
    result = run(root, hub)
    assert hub.repos["org/new"].commits[result.commit]["config.json"] == b"{}"
    assert len(hub.repos["org/new"].commits) == 3


def test_a_public_repository_is_made_only_where_it_is_asked_for(root: Path, hub: HubServer) -> None:
    assert not run(root, hub, asked(private=False)).private
    assert not hub.repos["org/new"].private


def test_nothing_is_uploaded_to_a_public_repository_unless_the_request_says_so(
    root: Path, hub: HubServer
) -> None:
    hub.repos["org/new"] = Repo()
    before = hub.repos["org/new"].commit({"README.md": b"public"})
    with pytest.raises(InvalidRequest, match="is public; the request says private"):
        run(root, hub)
    client = client_of(root, hub_enabled=True, hf_endpoint=hub.url, hub_token=hub.token)
    problem(client.post("/api/jobs", json=asked()), 422, "invalid_request")
    assert hub.repos["org/new"].branches["main"] == before
    assert client.post("/api/jobs", json=asked(private=False)).status_code == 202


def test_a_token_is_needed_and_must_be_valid(root: Path, hub: HubServer) -> None:
    client = client_of(root, hub_enabled=True, hf_endpoint=hub.url)
    found = problem(client.post("/api/jobs", json=asked()), 422, "hub_disabled")
    assert "GRAFTWERK_HUB_TOKEN" in found["detail"]
    with pytest.raises(HubDisabled, match="GRAFTWERK_HUB_TOKEN"):
        publish_to_hub.run(PublishToHubRequest.model_validate(asked()), hub_context(root, hub.url))
    problem(client_of(root).post("/api/jobs", json=asked()), 422, "hub_disabled")
    assert not hub.heard
    with pytest.raises(HubGated, match="denies access") as caught:
        run(root, hub, token="hf_wrong")
    assert "hf_wrong" not in caught.value.message + caught.value.hint
    assert "org/new" not in hub.repos


def test_the_plan_lists_the_files(root: Path, hub: HubServer) -> None:
    client = client_of(root, hub_enabled=True, hf_endpoint=hub.url, hub_token=hub.token)
    plan = client.post("/api/jobs?dry_run=true", json=asked()).get_json()
    assert {(read["path"], read["size_bytes"]) for read in plan["reads"]} == {
        (name, len(content)) for name, content in FILES.items()
    }
    assert not [path for method, path, _ in hub.heard if method != "GET"]
    problem(client.post("/api/jobs", json=asked(model="gone")), 404, "model_not_found")


def test_a_link_out_of_the_model_is_not_followed(root: Path, hub: HubServer) -> None:
    (root / "secret").write_text("secret")
    (root / "merged/link.txt").symlink_to(root / "secret")
    with pytest.raises(UnsafeArchive):
        run(root, hub)
    assert "org/new" not in hub.repos


def test_a_cancellation_ends_the_upload_and_makes_no_commit(root: Path, hub: HubServer) -> None:
    begun: list[Progress] = []

    def check() -> None:
        if begun:
            raise JobCanceled("canceled")

    with pytest.raises(JobCanceled):
        run(root, hub, report=begun.append, check_canceled=check)
    assert len(hub.repos["org/new"].commits) == 1  # that of its creation


def test_a_hub_that_fails_is_named(root: Path, hub: HubServer) -> None:
    hub.failing = 500
    with pytest.raises(GraftwerkError) as caught:
        run(root, hub)
    assert caught.value.code == "hub_unreachable"


def test_an_uploaded_model_is_imported_again(root: Path, hub: HubServer) -> None:
    from services.kinds.import_ import ImportRequest
    from worker.models import import_

    commit = run(root, hub).commit
    request = {"kind": "import", "source": {"hub": "org/new", "revision": commit}, "target": "back"}
    import_.run(
        ImportRequest.model_validate(request), hub_context(root, hub.url, settings={"hub_token": hub.token})
    )
    assert (root / "back/model.safetensors").read_bytes() == WEIGHTS
    assert json.loads((root / "back/manifest.json").read_text())["inputs"][0]["commit"] == commit
