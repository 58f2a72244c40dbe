"""Imports from a hub: what is fetched, checked, continued and refused, with the Hub's own client library against a local server."""

import json
import multiprocessing
import signal
import time
from pathlib import Path

import pytest
from fakeredis import FakeRedis, FakeServer
from safetensors.torch import save
from torch import zeros

from services.errors import (
    DigestMismatch,
    DiskFull,
    HubFileChanged,
    HubGated,
    HubUnreachable,
    InvalidRequest,
    JobCanceled,
)
from services.jobs.model_records import ModelRecords
from services.kinds.import_ import ImportRequest
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight.isolated import header_processes
from services.preflight.model_reader import ModelReader
from services.progress import Progress
from tests.api_client import client_of, problem
from tests.contract.hub_child import hub_context, import_until_killed
from tests.contract.hub_imports import asked, run
from tests.contract.hub_models import FETCHED, FILES, SIZE, WEIGHTS
from tests.hub_server import HubServer, Repo, sha256
from worker.models import import_

FORK = multiprocessing.get_context("fork")
"""As workers do it: the child has everything imported."""


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_files_of_the_model_are_fetched_once_and_its_commit_is_recorded(
    volume: Path, hub: HubServer
) -> None:
    reports: list[Progress] = []
    result = run(volume, hub, report=reports.append)
    folder = volume / "taken"
    assert names(folder) == FETCHED | {"manifest.json"}
    assert all((folder / name).read_bytes() == FILES[name] for name in FETCHED)
    total = sum(len(FILES[name]) for name in FETCHED)
    assert (result.files, result.bytes_written) == (len(FETCHED), total)
    manifest = read_manifest(folder)
    assert manifest is not None
    assert manifest.files == {name: sha256(FILES[name]) for name in FETCHED}
    assert [(entry.role, entry.name, entry.commit) for entry in manifest.inputs] == [
        ("source", "org/name", hub.repos["org/name"].branches["main"])
    ]
    downloaded = [report for report in reports if report.stage == "downloading"]
    assert [report.done for report in downloaded] == sorted(report.done for report in downloaded)
    assert (downloaded[-1].done, downloaded[-1].total, downloaded[-1].unit) == (total, total, "bytes")
    assert not list((volume / ".staging").iterdir())


def test_a_revision_is_resolved_when_the_job_starts(volume: Path, hub: HubServer) -> None:
    older = hub.repos["org/name"].branches["main"]
    hub.repos["org/name"].commit({**FILES, "model.safetensors": b"new"})
    run(volume, hub, asked(revision=older))
    assert (volume / "taken/model.safetensors").read_bytes() == WEIGHTS
    manifest = read_manifest(volume / "taken")
    assert manifest is not None
    assert (manifest.inputs[0].name, manifest.inputs[0].commit) == (f"org/name@{older}", older)


def test_the_plan_lists_files_bytes_and_commit(volume: Path, hub: HubServer) -> None:
    client = client_of(volume, hub_enabled=True, hf_endpoint=hub.url)
    plan = client.post("/api/jobs?dry_run=true", json=asked()).get_json()
    commit = hub.repos["org/name"].branches["main"]
    assert plan["reads"] == [
        {"name": "org/name", "path": name, "commit": commit, "size_bytes": len(FILES[name])}
        for name in sorted(FETCHED)
    ]
    assert plan["output_bytes"] == sum(len(FILES[name]) for name in FETCHED)
    assert not hub.downloads()


def test_an_import_killed_twice_resumes_within_its_large_file(volume: Path, hub: HubServer) -> None:
    for execution, share in (("1", 0.3), ("2", 0.7)):
        child = FORK.Process(target=import_until_killed, args=(volume, hub.url, asked(), share, execution))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        assert not (volume / "taken").exists()
    context = hub_context(volume, hub.url, run="3")
    import_.run(ImportRequest.model_validate(asked()), context)
    assert (volume / "taken/model.safetensors").read_bytes() == WEIGHTS
    starts = [int(asked_range.removeprefix("bytes=").removesuffix("-")) for asked_range in hub.downloads()]
    assert len(starts) == 3
    assert starts[0] == 0
    assert 0.25 * SIZE < starts[1] < 0.7 * SIZE < starts[2] + SIZE // 10 < SIZE
    assert any("from an earlier try" in line for line in context.execution.lines)  # type: ignore[attr-defined]
    assert not list((volume / ".staging").iterdir())


@pytest.mark.parametrize("change", ["commit", "bytes"])
def test_what_a_killed_import_has_staged_counts_only_if_it_is_of_the_same_commit(
    volume: Path, hub: HubServer, change: str
) -> None:
    child = FORK.Process(target=import_until_killed, args=(volume, hub.url, asked(), 0.5, "1"))
    child.start()
    child.join()
    files = FILES
    if change == "commit":
        files = {**FILES, "model.safetensors": WEIGHTS[::-1]}
        hub.repos["org/name"].commit(files)
    else:
        (staged,) = volume.glob(".staging/*/model/model.safetensors")
        staged.write_bytes(bytes(len(staged.read_bytes())))
    run(volume, hub, run="2")
    assert (volume / "taken/model.safetensors").read_bytes() == files["model.safetensors"]
    assert hub.downloads()[-1] == "bytes=0-"


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_broken_connection_is_continued(volume: Path, hub: HubServer, ranges: bool) -> None:
    hub.ranges, hub.breaks = ranges, [300_000, 500_000, 0, 0, 900_000]
    run(volume, hub)
    assert (volume / "taken/model.safetensors").read_bytes() == WEIGHTS
    assert len(hub.downloads()) == 6


def test_a_connection_that_only_breaks_is_given_up(volume: Path, hub: HubServer) -> None:
    hub.breaks = [1000] + [0] * 10
    with pytest.raises(HubUnreachable, match="5 times in succession"):
        run(volume, hub)
    assert not list((volume / ".staging").iterdir())
    assert not (volume / "taken").exists()


def test_a_canceled_import_ends_within_a_second_while_nothing_arrives(volume: Path, hub: HubServer) -> None:
    hub.stalls = [200_000]
    received: list[int] = []

    def check() -> None:
        if received and received[-1] > 100_000:
            raise JobCanceled("canceled")

    started: list[float] = []

    def report(progress: Progress) -> None:
        received.append(progress.done)
        started.append(time.monotonic())

    with pytest.raises(JobCanceled):
        run(volume, hub, report=report, check_canceled=check)
    assert time.monotonic() - started[-1] < 1
    assert not list((volume / ".staging").iterdir())


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", WEIGHTS[:-1] + b"?"), ("tokenizer.json", b"[]"), ("tokenizer.json", b"{}\n")],
    ids=["large", "small", "longer"],
)
def test_a_file_that_is_not_the_listed_one_is_refused(
    volume: Path, hub: HubServer, name: str, content: bytes
) -> None:
    hub.altered[name] = content
    with pytest.raises(HubFileChanged, match=name):
        run(volume, hub)
    assert not (volume / "taken").exists()
    assert not list((volume / ".staging").iterdir())


def test_bytes_that_have_another_digest_than_the_address_says_are_refused(
    volume: Path, hub: HubServer
) -> None:
    run(volume, hub)
    hub.stored[sha256(WEIGHTS)] = WEIGHTS[:-1] + b"?"

    class Kept(dict[str, bytes]):
        def __setitem__(self, digest: str, content: bytes) -> None:
            """Keeps the damaged bytes."""

    hub.stored = Kept(hub.stored)
    with pytest.raises(HubFileChanged, match="has the digest"):
        run(volume, hub, asked("other"), job_id="other")


def test_digests_of_the_request_are_compared(volume: Path, hub: HubServer) -> None:
    run(volume, hub, asked("right", sha256={"model.safetensors": sha256(WEIGHTS)}))
    with pytest.raises(DigestMismatch, match=r"model\.safetensors"):
        run(volume, hub, asked(sha256={"model.safetensors": "0" * 64}))
    with pytest.raises(InvalidRequest, match=r"sha256 names 'other\.bin'"):
        run(volume, hub, asked(sha256={"other.bin": "0" * 64}))


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(
    volume: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelStore, "free_bytes", lambda store: SIZE + 2**20)
    with pytest.raises(DiskFull):
        run(volume, hub)
    client = client_of(volume, hub_enabled=True, hf_endpoint=hub.url)
    problem(client.post("/api/jobs", json=asked()), 507, "disk_full")
    assert not hub.downloads()


def test_a_published_model_is_found_again_by_its_own_job(volume: Path, hub: HubServer) -> None:
    run(volume, hub)
    hub.failing = 500
    assert run(volume, hub, run="2").files == len(FETCHED)


def test_a_token_opens_what_is_gated_and_goes_to_the_hub_alone(volume: Path, hub: HubServer) -> None:
    hub.repos["org/name"].gated = hub.repos["org/name"].private = True
    context = hub_context(volume, hub.url, settings={"hub_token": hub.token})
    import_.run(ImportRequest.model_validate(asked()), context)
    assert (volume / "taken/model.safetensors").read_bytes() == WEIGHTS
    storage = [headers for _, path, headers in hub.heard if "/storage/" in path]
    assert storage
    assert all("authorization" not in headers for headers in storage)
    assert all("authorization" in headers for _, path, headers in hub.heard if "/storage/" not in path)
    text = (volume / "taken/manifest.json").read_text() + "".join(context.execution.lines)  # type: ignore[attr-defined]
    assert hub.token not in text
    assert "secretSignature" not in text
    assert hub.token not in repr(context.hub) + repr(context.settings)


def test_a_token_in_a_file(volume: Path, hub: HubServer, tmp_path: Path) -> None:
    hub.repos["org/name"].gated = True
    (tmp_path / "token").write_text(f"{hub.token}\n")
    run(volume, hub, settings={"hub_token_file": tmp_path / "token"})
    with pytest.raises(HubGated, match="no access"):
        run(volume, hub, asked("other"), settings={"hub_token": "hf_other"})


def test_an_adapter_that_was_imported_names_its_base_on_the_volume(volume: Path, hub: HubServer) -> None:
    hub.repos["org/adapter"] = Repo()
    adapter = {
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "Org/name",
    }  # fmt: skip
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    hub.repos["org/adapter"].commit(
        {
            "adapter_config.json": json.dumps(adapter).encode(),
            "adapter_model.safetensors": save(
                {name.format("A"): zeros(4, 48), name.format("B"): zeros(64, 4)}
            ),
            "optimizer.pt": b"not needed",
        }
    )
    result = run(volume, hub, {**asked(), "source": {"hub": "org/adapter"}})
    assert result.model.kind == "adapter"
    assert not result.model.problems
    assert names(volume / "taken") == {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    assert result.model.adapter["base"] == {
        "hub": "Org/name", "model": None, "hint": "graftwerk import hub:Org/name",
    }  # fmt: skip
    run(volume, hub, asked("the-base", revision="main"), job_id="other")
    expected = {"hub": "Org/name", "model": "the-base", "hint": None}
    assert ModelStore(volume).describe("taken").adapter["base"] == expected  # type: ignore[index]
    records = ModelRecords(FakeRedis(server=FakeServer()))
    reader = ModelReader(ModelStore(volume), records, header_processes())
    listed = {model.name: model.adapter for model in reader.models()}
    assert listed["taken"]["base"] == expected  # type: ignore[index]
    assert listed["the-base"] is None
