"""A merge or a conversion whose worker is killed goes on where it was, and gives what it would have given."""

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from services.architectures.checkpoint_reader import read_checkpoint
from services.kinds import ANY_REQUEST
from services.models.manifest import read_manifest
from tests.contract.resume_child import make, run_until_killed
from tests.job_context import job_context
from tests.reference.huggingface_model import save_llama
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks
from tests.reference.peft_merge import make_adapter
from tests.reference.tokenizer_files import piece_names, sentencepiece_file

TENSORS = 30
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.contract.resume_child"])  # torch is imported once for all
MERGE = {"kind": "merge", "base": "base", "adapters": ["adapter"], "target": "new"}
FORMATS = [{}, {"output_format": "meta", "ranks": 2}, {"output_format": "gguf"}]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_original(tmp_path / "original", split_ranks(random_state(SMALL), 2), SMALL.params)
    (tmp_path / "original/tokenizer.model").write_bytes(sentencepiece_file(piece_names(101)))
    save_llama(tmp_path / "base")
    (tmp_path / "base/tokenizer.model").write_bytes(sentencepiece_file(piece_names(101)))
    make_adapter(tmp_path / "adapter", seed=3)
    return tmp_path


def killed(
    root: Path, request: dict[str, Any], *, stage: str = "writing tensors", share: float = 0.5
) -> None:
    """The first execution of the job, killed once so much of a stage is done."""
    child = SERVER.Process(target=run_until_killed, args=(root, request, stage, share))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (root / request["target"]).exists()


def run(root: Path, request: dict[str, Any], number: int = 2) -> dict[str, Any]:
    """Returns the result of a later execution of the job."""
    return make(ANY_REQUEST.validate_python(request), job_context(root, run=str(number)))


def content(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, which says when and by which job the model was made."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def undisturbed(root: Path, request: dict[str, Any]) -> dict[str, bytes]:
    run(root, {**request, "target": "undisturbed", "force": True})
    return content(root / "undisturbed")


@pytest.mark.parametrize("layout", FORMATS, ids=["huggingface", "meta", "gguf"])
def test_a_killed_merge_keeps_what_it_had_written_and_ends_with_the_same_tensors(
    root: Path, layout: dict[str, Any]
) -> None:
    request = {**MERGE, **layout}
    killed(root, request)
    result = run(root, request)
    assert 0 < result["resumed"]["tensors"] < TENSORS
    assert 0 < result["resumed"]["bytes"] < result["bytes_written"]
    assert result["verification"]["passed"]
    run(root, {**request, "target": "undisturbed", "force": True})
    manifests = [read_manifest(root / name) for name in ("new", "undisturbed")]
    assert manifests[0] is not None and manifests[1] is not None
    assert manifests[0].tensors == manifests[1].tensors
    assert not list((root / ".staging").iterdir())
    if layout.get("output_format") == "meta":  # a file's tensors lie in the order in which threads ended them
        found, expected = (
            [torch.load(root / name / f"consolidated.{rank:02d}.pth", weights_only=True) for rank in range(2)]
            for name in ("new", "undisturbed")
        )
        for mine, theirs in zip(found, expected, strict=True):
            assert list(mine) == list(theirs)
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    else:
        assert content(root / "new") == content(root / "undisturbed")


def test_a_killed_conversion_goes_on(root: Path) -> None:
    request = {"kind": "convert", "source": "original", "target": "new", "max_shard_size": "20KB"}
    killed(root, request)
    result = run(root, request)
    assert 0 < result["resumed"]["tensors"] < TENSORS
    assert content(root / "new") == undisturbed(root, request)


def test_a_merge_killed_while_it_was_verified_keeps_every_tensor(root: Path) -> None:
    killed(root, MERGE, stage="verifying tensors")
    assert run(root, MERGE)["resumed"]["tensors"] == TENSORS
    assert content(root / "new") == undisturbed(root, MERGE)


@pytest.mark.parametrize("changed", ["adapter/adapter_model.safetensors", "base/model.safetensors"])
def test_nothing_is_kept_where_an_input_has_changed(root: Path, changed: str) -> None:
    killed(root, MERGE)
    data = bytearray((root / changed).read_bytes())
    data[-2] ^= 1  # in the last tensor's last value
    (root / changed).write_bytes(data)
    assert run(root, MERGE)["resumed"] == {"tensors": 0, "bytes": 0}
    assert content(root / "new") == undisturbed(root, MERGE)


@pytest.mark.parametrize("layout", FORMATS, ids=["huggingface", "meta", "gguf"])
def test_a_tensor_whose_bytes_are_not_those_that_were_noted_is_written_again(
    root: Path, layout: dict[str, Any]
) -> None:
    request = {**MERGE, **layout}
    killed(root, request, stage="verifying tensors")
    (left,) = (root / ".staging").iterdir()
    weights = max((left / "model").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    result = run(root, request)
    assert 0 < result["resumed"]["tensors"] < TENSORS
    assert result["verification"]["passed"]


def test_a_journal_with_a_torn_last_line_counts_up_to_it(root: Path) -> None:
    killed(root, MERGE, stage="verifying tensors")
    (left,) = (root / ".staging").iterdir()
    text = (left / "journal").read_text()
    (left / "journal").write_text(text[:-30])
    assert run(root, MERGE)["resumed"]["tensors"] == TENSORS - 1


def test_a_journal_that_cannot_be_read_counts_for_nothing(root: Path) -> None:
    killed(root, MERGE, stage="verifying tensors")
    (left,) = (root / ".staging").iterdir()
    identity = (left / "journal").read_text().splitlines()[0]
    (left / "journal").write_text(f"{identity}\n\0\0\0\0\n")
    assert run(root, MERGE)["resumed"]["tensors"] == 0
    assert read_checkpoint(root / "new").size_bytes > 0


def test_a_killed_merge_of_other_options_is_not_continued(root: Path) -> None:
    killed(root, MERGE)
    assert run(root, {**MERGE, "dtype": "float32"})["resumed"]["tensors"] == 0
