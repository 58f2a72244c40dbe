"""Models and values that GGUF cannot hold, and conversions that are canceled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from services.checkpoints.write_hooks import WriteHooks
from services.convert import ConvertOptions, convert
from services.errors import (
    GraftwerkError,
    JobCanceled,
    NonFiniteTensor,
    UnsupportedFormat,
    UnsupportedOption,
)
from services.kinds.convert import ConvertRequest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.contract.gguf_models import WIDE, tensors_of, to_gguf
from tests.reference.huggingface_model import save_llama


def refused(base: Path, error: type[GraftwerkError], *phrases: str, dtype: Any = None) -> None:
    """By intake and by the conversion, in the same words, before anything is written."""
    (base.parent / "target").mkdir()
    request = ConvertRequest(
        kind="convert", source=base.name, target="new", output_format="gguf", dtype=dtype
    )
    options = ConvertOptions(output_format="gguf", dtype={"q8_0": "Q8_0", None: None}[dtype])
    store = ModelStore(base.parent)
    for door in (
        lambda: preflight(request, store, {}),
        lambda: convert(base, base.parent / "target", options),
    ):
        with pytest.raises(error) as caught:
            door()
        for phrase in phrases:
            assert phrase in f"{caught.value.message} {caught.value.hint}"
    assert list((base.parent / "target").iterdir()) == []


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    phrase = "rows of 48 elements; Q8_0 encodes blocks of 32 (16 are left), so no tensor"
    refused(tmp_path / "base", UnsupportedOption, phrase, dtype="q8_0")


def test_matrices_whose_rows_are_no_whole_blocks_keep_their_dtype_and_are_told(tmp_path: Path) -> None:
    """64 columns are two blocks, 140 are not."""
    save_llama(tmp_path / "base", torch.bfloat16, hidden_size=64)
    request = ConvertRequest(kind="convert", source="base", target="new", output_format="gguf", dtype="q8_0")
    plan = preflight(request, ModelStore(tmp_path), {})
    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target", dtype="Q8_0"))
    kinds = {name: tensor.tensor_type.name for name, tensor in found.items() if ".1." in name}
    assert kinds["blk.1.ffn_down.weight"] == "BF16"
    assert {kind for name, kind in kinds.items() if "norm" not in name and "down" not in name} == {"Q8_0"}
    assert plan.warnings == [
        "3 of 23 matrices have rows that are not a whole number of blocks and fall back: 3 from Q8_0 (blocks of 32) to BF16."
    ]


def test_a_model_without_a_sentencepiece_tokenizer_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").unlink()
    refused(tmp_path / "base", UnsupportedFormat, "carries its tokenizer", "the model has none")


def test_a_model_without_a_tokenizer_model_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").unlink()
    refused(tmp_path / "base", UnsupportedFormat, "byte-level tokenizer.json; the model has none")


def test_an_unknown_scaling_is_refused_by_its_type(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    refused(tmp_path / "base", UnsupportedFormat, "'dynamic'")


def test_float64_needs_a_dtype(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", torch.float64)
    refused(tmp_path / "base", UnsupportedOption, "float64", '"float32"')


def test_a_value_beyond_an_encodings_scale_is_refused_by_name(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "base", torch.float32, **WIDE)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e7
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(NonFiniteTensor, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds 1e\+07"):
        to_gguf(tmp_path / "base", tmp_path / "target", dtype="Q8_0")


@pytest.mark.parametrize("output", ["huggingface", "meta"])
def test_q8_0_of_another_output_is_an_invalid_request(output: Any) -> None:
    with pytest.raises(ValidationError, match=f"'q8_0' is an encoding of output_format 'gguf'.*{output}"):
        ConvertRequest(kind="convert", source="a", target="b", output_format=output, dtype="q8_0")


def test_a_cancel_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    store = ModelStore(tmp_path / "volume")
    done: list[int] = []

    def check_canceled() -> None:
        if len(done) > 6:
            raise JobCanceled("canceled")

    watch = WriteHooks(report=lambda progress: done.append(progress.done), check_canceled=check_canceled)
    with pytest.raises(JobCanceled), store.publishing("model", execution="e1") as staging:
        convert(tmp_path / "base", staging, ConvertOptions(output_format="gguf"), watch)

    assert store.names() == []
