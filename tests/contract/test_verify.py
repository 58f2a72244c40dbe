"""Findings of a check: none in correct models made by PEFT or by us, and every change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from services.adapters.adapter import read_adapter
from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.readback import read_stored
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.errors import InvalidRequest, JobCanceled, WrongModelKind
from services.kinds.convert import ConvertRequest
from services.kinds.import_ import ImportRequest
from services.kinds.merge import MergeRequest
from services.kinds.verify import VerifyRequest
from services.merge import ScaledAdapter
from services.models.store import ModelStore
from services.preflight import preflight
from services.verify import expected_merge, verify_model
from services.verify.forward_pass import forward_logits, text_model
from services.verify.rounded import RoundedMerge
from services.verify.weights import ExpectedWeights, StoredWeights
from tests.contract.resume_child import make
from tests.job_context import job_context
from tests.reference.huggingface_model import save_llama
from tests.reference.peft_merge import make_adapter, peft_merged, random_model, save_model
from worker.lifecycle import result_as_json
from worker.models import import_, verify

IDS = torch.tensor([[1, 57, 100, 3, 99, 12, 76]])
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A base, two adapters that fit, and what PEFT makes of them: `merged`."""
    model = random_model(torch.float16)
    save_model(model, tmp_path / "base")
    adapters = [make_adapter(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 4))]
    save_llama(tmp_path / "merged")
    save_state(tmp_path / "merged", peft_merged(model, adapters))
    for name in ("config.json", "tokenizer.model"):
        (tmp_path / "merged" / name).write_bytes((tmp_path / "base" / name).read_bytes())
    return tmp_path


def save_state(folder: Path, state: dict[str, torch.Tensor]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def run(root: Path, **request: Any) -> dict[str, Any]:
    return result_as_json(verify.run(VerifyRequest(kind="verify", **request), job_context(root)))


# ---- the logits ---------------------------------------------------------------------------------------


def test_the_merged_sides_logits_are_those_of_transformers(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "m", torch.float32)
    checkpoint = read_checkpoint(tmp_path / "m")
    claim = expected_merge(tmp_path / "m", [], "huggingface")
    with TensorReader() as reader, torch.no_grad():
        weights = StoredWeights(reader, read_stored(tmp_path / "m", claim.output))
        found = forward_logits(
            [weights], text_model(checkpoint.config, checkpoint.tensors, 101), IDS, WriteHooks()
        )[0]
        assert torch.allclose(found, model(IDS).logits, atol=1e-5)


def test_the_other_sides_logits_are_those_of_peft_unmerged(tmp_path: Path) -> None:
    model = random_model(torch.float32)
    save_model(model, tmp_path / "base")
    options = {"target_modules": ["q_proj", "down_proj", "lm_head", "embed_tokens"], "use_rslora": True}
    folder = make_adapter(tmp_path / "a", seed=3, **options)
    base = read_checkpoint(tmp_path / "base")
    scaled = [ScaledAdapter(read_adapter(folder, "a"), 1.0)]
    with TensorReader() as reader, torch.no_grad():
        weights = ExpectedWeights(reader, RoundedMerge(base=base, adapters=scaled, dtypes={}))
        found = forward_logits([weights], text_model(base.config, base.tensors, 101), IDS, WriteHooks())[0]
        expected = PeftModel.from_pretrained(model, folder)(IDS).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(
        found, LlamaForCausalLM.from_pretrained(tmp_path / "base")(IDS).logits, atol=1e-2
    )


# ---- against base and adapters ------------------------------------------------------------------------


def test_what_peft_merged_passes_against_base_and_adapters(root: Path) -> None:
    report = run(root, model="merged", base="base", adapters=["a", "b"])
    assert (report["passed"], report["against"], report["differences"]) == (True, ["base and adapters"], [])
    assert report["tensors"] == 30
    assert 0 < report["largest_share_of_tolerance"] <= 1
    assert report["logits"]["greedy_agreement"] == 1
    assert 0 <= report["logits"]["relative_difference"] < report["logits"]["tolerance"]


@pytest.mark.parametrize(
    "adapters",
    [["a"], [{"name": "a", "scale": 0.9}, "b"], []],
    ids=["one is missing", "another scale", "none at all"],
)
def test_a_model_of_other_adapters_does_not_pass(root: Path, adapters: list[Any]) -> None:
    report = run(root, model="merged", base="base", adapters=adapters)
    assert not report["passed"]
    named = [found["tensor"] for found in report["differences"] if found["tensor"] != "adapter"]
    assert len(named) == 21, "seven projections in each of three layers"
    assert "times what rounding to F16 explains" in report["differences"][0]["message"]
    assert report["logits"] is None


def test_a_conversion_passes_against_its_base_in_every_format(root: Path) -> None:
    for layout in ("huggingface", "meta", "gguf"):
        request = ConvertRequest(kind="convert", source="merged", target=layout, output_format=layout)
        make(request, job_context(root))
        report = run(root, model=layout, base="merged")
        assert report["passed"], report["differences"]
        assert report["against"] == ["manifest", "base and adapters"]
        assert report["largest_difference"] == 0


def test_rows_that_no_sample_meets_are_named(root: Path) -> None:
    """Of 48 rows 16 are sampled: row 1 is none of them."""
    state = load_file(root / "merged/model.safetensors")
    state[DOWN][1] *= 30
    save_state(root / "merged", state)
    report = run(root, model="merged", base="base", adapters=["a", "b"])
    assert not report["passed"]
    assert report["differences"][0]["tensor"] == DOWN
    assert report["differences"][0]["message"].startswith(
        f"Row 1 of {DOWN!r} differs from the expected one by"
    )


def test_missing_extra_and_misshapen_tensors_are_named(root: Path) -> None:
    claim = expected_merge(root / "base", [], "huggingface")
    folder = root / "other"
    save_llama(folder, vocab_size=103)
    found = {item.tensor: item.message for item in verify_model(folder, claim, WriteHooks()).differences}
    assert found["lm_head.weight"] == (
        "'lm_head.weight' has shape [103, 48]; base and adapters give [101, 48]."
    )
    tied = root / "tied"
    save_llama(tied, tie_word_embeddings=True)
    found = {item.tensor: item.message for item in verify_model(tied, claim, WriteHooks()).differences}
    assert found["lm_head.weight"] == "'lm_head.weight' is missing."


# ---- against the manifest -----------------------------------------------------------------------------


@pytest.fixture
def made(root: Path) -> Path:
    make(MergeRequest(kind="merge", base="base", adapters=["a", "b"], target="made"), job_context(root))
    return root / "made"


def test_what_was_made_passes_against_its_manifest(root: Path, made: Path) -> None:
    report = run(root, model="made")
    assert (report["passed"], report["digests_equal"], report["against"]) == (True, 30, ["manifest"])
    assert report["files"] == len([path for path in made.iterdir() if path.suffix != ".safetensors"]) - 1
    assert report["unlisted_files"] == []


def test_a_changed_bit_is_found_and_its_tensor_named(root: Path, made: Path) -> None:
    data = bytearray((made / "model.safetensors").read_bytes())
    header_bytes = int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8 : 8 + header_bytes])[DOWN]["data_offsets"]
    data[8 + header_bytes + start + 7] ^= 1
    (made / "model.safetensors").write_bytes(data)
    report = run(root, model="made")
    assert (report["passed"], report["digests_equal"]) == (False, 29)
    assert [difference["tensor"] for difference in report["differences"]] == [DOWN]


def test_changed_missing_and_added_files_are_told_apart(root: Path, made: Path) -> None:
    with (made / "tokenizer.model").open("ab") as file:
        file.write(b"\0")
    (made / "generation_config.json").unlink()
    (made / "notes.txt").write_text("mine")
    report = run(root, model="made")
    assert not report["passed"]
    assert [difference["file"] for difference in report["differences"]] == [
        "made", "generation_config.json", "tokenizer.model",
    ]  # fmt: skip
    assert "the model cannot be read" in report["differences"][0]["message"]
    assert report["unlisted_files"] == ["model.safetensors", "notes.txt"]


def test_a_model_without_a_manifest_needs_a_base(root: Path) -> None:
    request = VerifyRequest(kind="verify", model="merged")
    with pytest.raises(InvalidRequest, match=r"has no manifest\.json"):
        preflight(request, ModelStore(root), {})


def test_an_adapter_is_no_merged_model(root: Path) -> None:
    request = VerifyRequest(kind="verify", model="a", base="base", adapters=["b"])
    with pytest.raises(WrongModelKind, match="'a' is of kind 'adapter'"):
        preflight(request, ModelStore(root), {})


def test_a_file_of_an_import_that_was_changed_is_found(root: Path) -> None:
    (root / "incoming").mkdir()
    (root / "a").rename(root / "incoming/a")
    request = ImportRequest(kind="import", source={"path": "incoming/a"}, target="taken")
    import_.run(request, job_context(root))
    assert run(root, model="taken")["passed"]
    (root / "taken/adapter_config.json").write_text("{}")
    report = run(root, model="taken")
    assert [difference["file"] for difference in report["differences"]] == ["adapter_config.json"]


def test_a_check_is_canceled_while_it_compares_logits(root: Path) -> None:
    """The two threads stop before they reach the last layer."""
    stages: list[str] = []

    def canceled() -> None:
        if stages and stages[-1] == "comparing logits":
            raise JobCanceled("the job was canceled while it ran")

    watch = WriteHooks(lambda progress: stages.append(progress.stage), canceled)
    claim = expected_merge(root / "base", [(name, root / name, 1.0) for name in ("a", "b")], "huggingface")
    with pytest.raises(JobCanceled):
        verify_model(root / "merged", claim, watch)
