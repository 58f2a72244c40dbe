"""A checkpoint's tensors as blocks of rows: together they are the tensor that is read whole, and none is large."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import services.checkpoints.blocks as blocks_of
import services.convert.conversion as converting
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.output_spec import OutputFormat
from services.checkpoints.blocks import source_blocks
from services.checkpoints.tensor_reader import TensorReader
from services.convert import ConvertOptions, convert
from services.errors import NonFiniteTensor
from tests.reference.huggingface_model import save_llama
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks

LEAST = 48 * 12
"""Elements of a block here: twelve rows of the hidden size, two heads; the tensors have up to 140 rows."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_of, "BLOCK_ELEMENTS", LEAST)


@pytest.mark.parametrize("embedding_dim", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_blocks_of_every_tensor_are_the_tensor(tmp_path: Path, ranks: int, embedding_dim: int) -> None:
    parts = split_ranks(random_state(SMALL), ranks, embedding_dim=embedding_dim)
    source = save_original(tmp_path / "source", parts, SMALL.params)
    if embedding_dim == 0:
        # by their shapes they are Llama 3's, whichever tokenizer there is
        (source / "tokenizer.model").unlink()
    checkpoint = read_checkpoint(source)
    with TensorReader() as reader:
        for tensor in checkpoint.tensors.values():
            blocks = list(source_blocks(reader, tensor))
            assert torch.equal(torch.cat(blocks), reader.load(tensor)), tensor.name
            assert max(block.numel() for block in blocks) <= LEAST, tensor.name
            assert len(blocks) > 2 or tensor.shape[0] <= 48, tensor.name


@pytest.mark.parametrize("output_format", ["huggingface", "meta", "gguf"])
def test_what_is_cast_is_a_block_whatever_is_written(
    tmp_path: Path, output_format: OutputFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def watched(name: str, tensor: torch.Tensor, dtype: str) -> torch.Tensor:
        sizes.append(tensor.numel())
        return cast(name, tensor, dtype)

    cast = converting.cast
    monkeypatch.setattr(converting, "cast", watched)
    save_llama(tmp_path / "base", torch.float16)
    (tmp_path / "target").mkdir()
    convert(tmp_path / "base", tmp_path / "target", ConvertOptions("F32", output_format=output_format))
    assert sum(sizes) == sum(parameter.numel() for parameter in save_llama(tmp_path / "same").parameters())
    assert max(sizes) == LEAST


def test_a_value_that_is_no_number_in_a_later_block_is_refused_by_the_tensors_name(tmp_path: Path) -> None:
    state = random_state(SMALL)
    state["layers.1.feed_forward.w2.weight"][47, 139] = float("inf")
    source = save_original(tmp_path / "source", split_ranks(state, 2), SMALL.params)
    tensor = read_checkpoint(source).tensors["model.layers.1.mlp.down_proj.weight"]
    with TensorReader() as reader, pytest.raises(NonFiniteTensor, match=r"down_proj\.weight' holds 1 values"):
        list(source_blocks(reader, tensor))


def test_a_head_that_is_larger_than_a_block_stays_whole(tmp_path: Path) -> None:
    sizes = replace(SMALL, n_heads=2, n_kv_heads=1)
    source = save_original(tmp_path / "source", split_ranks(random_state(sizes), 1), sizes.params)
    tensor = read_checkpoint(source).tensors["model.layers.0.self_attn.q_proj.weight"]
    with TensorReader() as reader:
        blocks = list(source_blocks(reader, tensor))
        assert [len(block) for block in blocks] == [24, 24]
        assert torch.equal(torch.cat(blocks), reader.load(tensor))
