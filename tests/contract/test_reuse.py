"""The same request of the same inputs finds what it made before; anything else is made."""

import os
from pathlib import Path
from typing import Any

import pytest

from services.kinds import ANY_REQUEST
from services.models.manifest import read_manifest
from services.models.store import ModelStore
from tests.contract.resume_child import make
from tests.job_context import job_context
from worker.models import reuse

MERGE = {"kind": "merge", "base": "base", "adapters": ["a", "b"], "target": "first"}
CONVERT = {"kind": "convert", "source": "base", "target": "first"}


def run(root: Path, request: dict[str, Any], **more: Any) -> dict[str, Any]:
    return make(ANY_REQUEST.validate_python({**request, **more}), job_context(root))


@pytest.mark.parametrize("request_", [MERGE, CONVERT], ids=["merge", "convert"])
def test_the_same_request_under_another_name_gives_the_same_model(
    root: Path, request_: dict[str, Any]
) -> None:
    first = run(root, request_)
    second = run(root, request_, target="second")
    assert second["same_as"] == "first"
    assert second["tensor_digest"] == first["tensor_digest"]
    assert second["model"]["name"] == "second"
    names = sorted(path.name for path in (root / "first").iterdir())
    assert names == sorted(path.name for path in (root / "second").iterdir())
    for name in set(names) - {"manifest.json"}:
        assert (root / "first" / name).read_bytes() == (root / "second" / name).read_bytes()
    ModelStore(root).delete("first")
    assert run(root, request_, target="third")["same_as"] == "second"


def test_large_files_are_not_copied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "LEAST_LINKED_BYTES", 10_000)
    run(root, MERGE)
    run(root, MERGE, target="second")
    assert (root / "first/model.safetensors").samefile(root / "second/model.safetensors")
    assert not (root / "first/config.json").samefile(root / "second/config.json")


def test_forced_it_is_made_anew(root: Path) -> None:
    run(root, MERGE)
    result = run(root, MERGE, target="second", force=True)
    assert "same_as" not in result
    assert not (root / "first/model.safetensors").samefile(root / "second/model.safetensors")


@pytest.mark.parametrize(
    "other",
    [
        {"adapters": ["b", "a"]}, {"adapters": ["a", {"name": "b", "scale": 0.5}]}, {"dtype": "float32"},
        {"rounding": "once"}, {"verify": False}, {"output_format": "gguf"}, {"max_shard_size": "20KB"},
    ],
    ids=str,
)  # fmt: skip
def test_another_request_is_made(root: Path, other: dict[str, Any]) -> None:
    run(root, MERGE)
    assert "same_as" not in run(root, MERGE, **{"target": "second", **other})


def test_inputs_of_another_content_make_another_model(root: Path) -> None:
    run(root, MERGE)
    config = root / "b/adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 16', '"lora_alpha": 32'))
    assert "same_as" not in run(root, MERGE, target="second")


def test_the_same_inputs_under_other_names_make_the_same_model(root: Path) -> None:
    """Found by the digests of converted and imported files, under any name."""
    base = run(root, {"kind": "convert", "source": "base", "target": "made"})
    again = run(root, {"kind": "convert", "source": "base", "target": "again", "force": True})
    assert base["tensor_digest"] == again["tensor_digest"]
    run(root, MERGE, base="made")
    assert run(root, MERGE, base="again", target="second")["same_as"] == "first"


def test_a_model_that_somebody_has_changed_is_not_taken(root: Path) -> None:
    run(root, MERGE)
    path = root / "first/config.json"
    path.write_text(path.read_text().replace("silu", "gelu"))
    later = (root / "first/manifest.json").stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert "same_as" not in run(root, MERGE, target="second")


def test_what_was_taken_says_by_which_job_and_is_found_in_its_turn(root: Path) -> None:
    run(root, MERGE)
    run(root, MERGE, target="second")
    manifests = [read_manifest(root / name) for name in ("first", "second")]
    assert manifests[0] is not None and manifests[1] is not None
    assert manifests[0].identity == manifests[1].identity
    assert manifests[1].result["same_as"] == "first"
