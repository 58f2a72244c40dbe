"""Jobs that extract an adapter: plan, result, manifest, reuse, cancellation, refusals."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.errors import (
    GraftwerkError,
    InvalidRequest,
    JobCanceled,
    ModelExists,
    ModelNotFound,
    WrongModelKind,
)
from services.kinds import ANY_REQUEST
from services.kinds.extract import ExtractRequest
from services.kinds.merge import MergeRequest
from services.kinds.verify import VerifyRequest
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import preflight
from services.progress import Progress
from tests.job_context import job_context
from tests.reference.huggingface_model import save_llama
from tests.reference.peft_merge import make_adapter
from worker.lifecycle import result_as_json
from worker.models import extract as extract_job
from worker.models import merge as merge_job
from worker.models import verify as verify_job

RANK = 8


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, the adapter `a` of rank 8, and `tuned`, which is both merged."""
    root = tmp_path_factory.mktemp("volume")
    save_llama(root / "base")
    make_adapter(root / "a", seed=3, r=RANK)
    merge_job.run(MergeRequest(kind="merge", base="base", adapters=["a"], target="tuned"), job_context(root))
    return root


def asked(**fields: Any) -> ExtractRequest:
    values = {"kind": "extract", "base": "base", "model": "tuned", "rank": RANK, "target": "found"} | fields
    request = ANY_REQUEST.validate_python(values)
    assert isinstance(request, ExtractRequest)
    return request


def run(volume: Path, **fields: Any) -> dict[str, Any]:
    return result_as_json(extract_job.run(asked(**fields), job_context(volume)))


@pytest.fixture(scope="module")
def result(volume: Path) -> dict[str, Any]:
    return run(volume)


def test_the_result_counts_every_tensor(volume: Path, result: dict[str, Any]) -> None:
    assert (result["pairs"], result["replaced"], result["unchanged"], result["tensors"]) == (21, 0, 9, 42)
    assert result["rank"] == RANK
    assert len(result["errors"]) == 21
    assert 0 < result["error"] < 0.02
    assert result["model"]["kind"] == "adapter"
    assert result["model"]["adapter"]["r"] == RANK
    assert result["model"]["adapter"]["base_model_name_or_path"] == "base"
    data = (volume / "found/adapter_model.safetensors").read_bytes()
    assert result["bytes_written"] == len(data) - 8 - int.from_bytes(data[:8], "little")


def test_the_plan_has_at_least_the_size_of_the_adapter(volume: Path, result: dict[str, Any]) -> None:
    plan = preflight(asked(target="planned"), ModelStore(volume), ())
    assert [(entry.role, entry.name) for entry in plan.reads] == [("base", "base"), ("model", "tuned")]
    assert plan.output_bytes >= result["bytes_written"]
    assert plan.peak_memory_bytes > 350 * 2**20


def test_the_manifest_has_digests_and_lineage(volume: Path, result: dict[str, Any]) -> None:
    manifest = read_manifest(volume / "found")
    tuned = read_manifest(volume / "tuned")
    assert manifest is not None
    assert tuned is not None
    assert manifest.operation == "extract"
    assert manifest.options == {"base": "base", "model": "tuned", "rank": RANK}
    assert [(entry.role, entry.name, entry.digest) for entry in manifest.inputs] == [
        ("base", "base", None), ("model", "tuned", tuned.digest)
    ]  # fmt: skip
    assert len(manifest.tensors) == 42
    assert set(manifest.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert result["tensor_digest"] == manifest.digest
    report = verify_job.run(VerifyRequest(kind="verify", model="found"), job_context(volume))
    assert report.passed
    assert (report.digests_equal, report.files) == (42, 3)


def test_a_damaged_adapter_does_not_agree_with_its_manifest(volume: Path) -> None:
    run(volume, target="damaged", rank=3)
    path = volume / "damaged/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\1\0")
    report = verify_job.run(VerifyRequest(kind="verify", model="damaged"), job_context(volume))
    assert not report.passed
    assert report.digests_equal == 41


def test_the_same_request_is_not_computed_again(volume: Path, result: dict[str, Any]) -> None:
    again = run(volume, target="again")
    assert again["same_as"] == "found"
    assert again["tensor_digest"] == result["tensor_digest"]
    assert "resumed" not in again
    assert "same_as" not in run(volume, target="other", rank=RANK - 1)


def test_a_rank_that_is_too_small_is_said_with_the_one_that_is_needed(volume: Path) -> None:
    found = run(volume, target="small", rank=2)
    assert found["error"] > 0.5
    assert "rank 2 leaves an error above 0.1 in 21 of 21 weights" in found["warnings"][-1]
    assert found["warnings"][-1].endswith("would take a rank of at least 8")


def test_a_canceled_job_leaves_nothing(volume: Path) -> None:
    stages: list[str] = []

    def report(progress: Progress) -> None:
        stages.append(progress.stage)

    def cancel() -> None:
        if stages[-1:] == ["computing factors"]:
            raise JobCanceled("canceled")

    context = job_context(volume, report=report, check_canceled=cancel)
    with pytest.raises(JobCanceled):
        extract_job.run(asked(target="canceled", rank=5), context)
    assert not (volume / "canceled").exists()
    assert not list((volume / ".staging").iterdir())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "a"}, WrongModelKind, "'a' is of kind 'adapter'"),
        ({"base": "absent"}, ModelNotFound, "'absent'"),
        ({"target": "A"}, ModelExists, "exists already"),
        ({"rank": 49}, InvalidRequest, "The rank 49 is larger than 48"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(
    volume: Path, fields: dict[str, Any], error: type[GraftwerkError], message: str
) -> None:
    with pytest.raises(error) as caught:
        preflight(asked(**{"target": "new"} | fields), ModelStore(volume), ())
    assert message in caught.value.message


@pytest.mark.parametrize("fields", [{"model": "BASE"}, {"rank": 0}, {"target": "tuned"}, {"density": 1}])
def test_a_request_that_means_nothing_is_refused_by_its_shape(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        asked(**fields)


def test_a_model_that_an_earlier_job_will_make_is_waited_for(volume: Path) -> None:
    plan = preflight(asked(model="later", target="planned"), ModelStore(volume), {"later"})
    assert plan.warnings == ["later does not exist yet. It is checked when the job starts."]
