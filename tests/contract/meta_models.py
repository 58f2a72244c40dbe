"""Models in Meta's layout, written and read back, for the tests of that layout."""

from pathlib import Path
from typing import Any

import torch

from services.convert import ConvertOptions, convert
from tests.reference.huggingface_model import save_llama
from tests.reference.make_original import State


def written(source: Path, target: Path, **options: Any) -> Path:
    target.mkdir()
    convert(source, target, ConvertOptions(**options))
    return target


def to_meta(source: Path, target: Path, **options: Any) -> Path:
    return written(source, target, output_format="meta", **options)


def ranks_of(folder: Path) -> list[State]:
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("consolidated.*.pth"))]


def without_frequencies(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "rope.freqs"}


def assert_same_bits(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def save_base(folder: Path, **config: Any) -> Path:
    save_llama(folder, **config)
    return folder
