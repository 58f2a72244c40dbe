"""Adapters that cannot be combined are refused by name."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from services.errors import (
    AdapterMismatch,
    GraftwerkError,
    InvalidRequest,
    NonFiniteTensor,
    UnsupportedAdapter,
    VocabularyMismatch,
)
from tests.contract.test_combine import combined, state_of, three
from tests.reference.peft_merge import make_adapter, write_tokenizer

__all__ = ["three"]  # fixture


def dora(folder: Path) -> Path:
    return make_adapter(folder / "odd", seed=6, use_dora=True)


def other_size(folder: Path) -> Path:
    path = make_adapter(folder / "odd", seed=6)
    state = {
        name: tensor[..., :40] if "q_proj.lora_A" in name else tensor
        for name, tensor in state_of(path).items()
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, path / "adapter_model.safetensors"
    )
    return path


def other_tokenizer(folder: Path) -> Path:
    path = make_adapter(folder / "odd", seed=6)
    write_tokenizer(path, 101)
    file = path / "tokenizer.model"
    file.write_bytes(file.read_bytes().replace(b"p50", b"q50"))
    return path


def replaces_what_another_adds_to(folder: Path) -> Path:
    return make_adapter(folder / "odd", seed=6, modules_to_save=["embed_tokens"])


def parameters(folder: Path) -> Path:
    path = make_adapter(folder / "odd", seed=6)
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, "target_parameters": ["q_proj.weight"]}))
    return path


def trained_rows(folder: Path) -> Path:
    return make_adapter(folder / "odd", seed=6, trainable_token_indices=[3, 7])


@pytest.mark.parametrize(
    ("odd", "error", "message"),
    [
        (dora, UnsupportedAdapter, "Adapter odd is of type DoRA"),
        (other_size, AdapterMismatch, "is changed in shape [48, 48] by third and in [48, 40] by odd"),
        (other_tokenizer, VocabularyMismatch, "The tokenizers of third (101 tokens) and odd (101) differ from token 53 on"),
        (replaces_what_another_adds_to, UnsupportedAdapter, "Adapter odd replaces 'model.embed_tokens.weight' whole, and another"),
        (parameters, UnsupportedAdapter, "Adapter odd changes parameters without a layer"),
        (trained_rows, UnsupportedAdapter, "Adapter odd trains rows of single tokens"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    tmp_path: Path, odd: Any, error: type[GraftwerkError], message: str
) -> None:
    third = make_adapter(tmp_path / "third", seed=3, target_modules=["q_proj", "embed_tokens"])
    write_tokenizer(third, 101)
    with pytest.raises(error) as caught:
        combined([third, odd(tmp_path)], tmp_path / "sum", [1.0, 1.0])
    assert message in caught.value.message
    assert not list((tmp_path / "sum").iterdir())


def test_the_same_adapter_twice_is_refused(tmp_path: Path, three: list[Path]) -> None:
    with pytest.raises(InvalidRequest, match="An adapter is named twice in first, first"):
        combined([three[0], three[0]], tmp_path / "sum", [1.0, 1.0])


def test_values_that_are_not_finite_are_refused(tmp_path: Path, three: list[Path]) -> None:
    copy = Path(shutil.copytree(three[0], tmp_path / "copy"))
    state = state_of(copy)
    next(iter(state.values()))[0, 0] = math.nan
    save_file(state, copy / "adapter_model.safetensors")
    with pytest.raises(NonFiniteTensor, match="holds 1 values of NaN"):
        combined([three[1], copy], tmp_path / "sum", [1.0, 1.0])
