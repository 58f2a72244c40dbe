"""Jobs that combine adapters: plan, result, manifest, reuse, cancellation, refusals."""

import shutil
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
    UnsupportedAdapter,
    WrongModelKind,
)
from services.kinds import ANY_REQUEST
from services.kinds.combine import CombineRequest
from services.kinds.verify import VerifyRequest
from services.models.digests import digest_file
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from services.preflight import Limits, preflight
from services.progress import Progress
from tests.job_context import job_context
from tests.reference.huggingface_model import save_llama
from tests.reference.peft_merge import make_adapter
from worker.lifecycle import result_as_json
from worker.models import combine as combine_job
from worker.models import verify as verify_job


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`a` of rank 8, `b` of rank 5 on two modules a layer, `copy` of `a`, and the model `base`."""
    root = tmp_path_factory.mktemp("volume")
    make_adapter(root / "a", seed=3)
    make_adapter(root / "b", seed=4, r=5, target_modules=["q_proj", "up_proj"])
    shutil.copytree(root / "a", root / "copy")
    save_llama(root / "base")
    return root


def asked(**fields: Any) -> CombineRequest:
    values = {"kind": "combine", "adapters": ["a", {"name": "b", "scale": 0.5}], "target": "ab"} | fields
    request = ANY_REQUEST.validate_python(values)
    assert isinstance(request, CombineRequest)
    return request


def run(volume: Path, **fields: Any) -> dict[str, Any]:
    return result_as_json(combine_job.run(asked(**fields), job_context(volume)))


@pytest.fixture(scope="module")
def result(volume: Path) -> dict[str, Any]:
    return run(volume)


def test_the_result_is_a_summary_with_the_error(volume: Path, result: dict[str, Any]) -> None:
    assert (result["pairs"], result["replaced"], result["tensors"], result["rank"]) == (21, 0, 42, 13)
    assert result["error"] < 1e-6
    assert result["model"]["kind"] == "adapter"
    assert result["model"]["adapter"]["r"] == result["model"]["adapter"]["lora_alpha"] == 13
    assert result["warnings"] == []


def test_the_plan_has_the_size_of_the_adapter(volume: Path, result: dict[str, Any]) -> None:
    plan = preflight(asked(target="planned"), ModelStore(volume), ())
    assert [(entry.role, entry.name) for entry in plan.reads] == [("adapter", "a"), ("adapter", "b")]
    assert plan.output_bytes == result["bytes_written"]
    assert plan.writes is not None
    assert plan.writes.tensors == result["tensors"]


def test_the_manifest_has_digests_scales_and_order(volume: Path, result: dict[str, Any]) -> None:
    manifest = read_manifest(volume / "ab")
    assert manifest is not None
    assert manifest.operation == "combine"
    assert [(entry.role, entry.name, entry.digest, entry.scale) for entry in manifest.inputs] == [
        ("adapter", name, digest_file(volume / name / "adapter_model.safetensors"), scale)
        for name, scale in (("a", 1.0), ("b", 0.5))
    ]
    assert manifest.options["method"] == "concatenate"
    report = verify_job.run(VerifyRequest(kind="verify", model="ab"), job_context(volume))
    assert report.passed
    assert report.digests_equal == 42


def test_the_same_request_is_not_computed_again(volume: Path, result: dict[str, Any]) -> None:
    assert run(volume, target="again")["same_as"] == "ab"
    for number, other in enumerate(
        ({"adapters": ["a", "b"]}, {"method": "linear"}, {"rank": 4}, {"method": "ties"})
    ):
        assert "same_as" not in run(volume, target=f"other-{number}", **other)


def test_a_rank_that_is_too_small_is_said_with_the_one_that_is_needed(volume: Path) -> None:
    found = run(volume, target="small", method="ties", density=0.2, rank=3)
    assert found["error"] > 0.3
    assert "rank 3 leaves an error above 0.1 in 21 of 21 weights" in found["warnings"][-1]


def test_a_canceled_job_leaves_nothing(volume: Path) -> None:
    stages: list[str] = []

    def report(progress: Progress) -> None:
        stages.append(progress.stage)

    def cancel() -> None:
        if stages[-1:] == ["verifying products"]:
            raise JobCanceled("canceled")

    context = job_context(volume, report=report, check_canceled=cancel)
    with pytest.raises(JobCanceled):
        combine_job.run(asked(target="canceled", rank=2), context)
    assert not (volume / "canceled").exists()
    assert not list((volume / ".staging").iterdir())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"adapters": ["a", "base"]},
            WrongModelKind,
            "'base' is of kind 'huggingface'; an adapter is needed",
        ),
        ({"adapters": ["a", "absent"]}, ModelNotFound, "'absent'"),
        ({"adapters": ["a", "copy"]}, InvalidRequest, "Adapters a and copy hold the same weights."),
        ({"adapters": ["a", "a"]}, InvalidRequest, "An adapter is named twice in a, a."),
        ({"target": "BASE"}, ModelExists, "exists already"),
        ({"rank": 14}, InvalidRequest, "The rank 14 is larger than 13"),
        ({"rank": 49, "method": "dare"}, InvalidRequest, "The rank 49 is larger than 48"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(
    volume: Path, fields: dict[str, Any], error: type[GraftwerkError], message: str
) -> None:
    with pytest.raises(error) as caught:
        preflight(asked(**{"target": "new"} | fields), ModelStore(volume), ())
    assert message in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [{"adapters": []}, {"method": "slerp"}, {"density": 0.0}, {"density": 0.3}, {"rank": 0}, {"target": "A"}],
)
def test_a_request_that_means_nothing_is_refused_by_its_shape(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        asked(**fields)


def test_an_adapter_that_an_earlier_job_will_make_is_waited_for(volume: Path) -> None:
    plan = preflight(asked(adapters=["a", "later"], target="planned"), ModelStore(volume), {"later"})
    assert plan.warnings == ["later does not exist yet. It is checked when the job starts."]


def test_large_tensors_are_compared_when_the_job_starts_not_when_it_is_submitted(tmp_path: Path) -> None:
    for name, seed in (("one", 4), ("two", 5)):
        make_adapter(tmp_path / name, seed=seed, modules_to_save=["embed_tokens", "lm_head"])
    request = asked(adapters=["one", "two"])
    preflight(request, ModelStore(tmp_path), (), limits=Limits(digest_bytes=0))
    with pytest.raises(UnsupportedAdapter, match="both replace"):
        preflight(request, ModelStore(tmp_path), ())
    with pytest.raises(UnsupportedAdapter, match="both replace"):
        combine_job.run(request, job_context(tmp_path))
