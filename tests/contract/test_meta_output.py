"""Meta's layout written: against what model-parallel training would have saved, and there and back bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.architectures.checkpoint_reader import read_checkpoint
from tests.contract.meta_models import (
    assert_same_bits,
    ranks_of,
    save_base,
    to_meta,
    without_frequencies,
    written,
)
from tests.reference.huggingface_model import save_llama
from tests.reference.make_original import SMALL, WIDE, Sizes, random_state, save_original, split_ranks
from tests.reference.original_llama import original_logits
from tests.reference.tokenizer_files import tiktoken_file

TOKENS = [1, 57, 100, 3, 99, 12, 76]
RANKS = [(1, SMALL), (2, SMALL), (4, SMALL), (8, WIDE)]


@pytest.mark.parametrize(("ranks", "sizes"), RANKS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_meta_to_huggingface_and_back_gives_the_bits_of_every_rank(
    tmp_path: Path, ranks: int, sizes: Sizes, dtype: torch.dtype
) -> None:
    """Grouped key-value heads, and 101 tokens that divide by no rank count."""
    parts = split_ranks(random_state(sizes, dtype), ranks)
    source = save_original(tmp_path / "source", parts, sizes.params)

    between = written(source, tmp_path / "between")
    target = to_meta(between, tmp_path / "target", ranks=ranks)

    found = ranks_of(target)
    assert len(found) == ranks
    for part, expected in zip(found, parts, strict=True):
        assert_same_bits(part, without_frequencies(expected))
    assert (target / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()


@pytest.mark.parametrize(("ranks", "sizes"), RANKS)
def test_huggingface_to_meta_and_back_gives_the_same_tensors_and_sizes(
    tmp_path: Path, ranks: int, sizes: Sizes
) -> None:
    state = random_state(sizes)
    whole = save_original(tmp_path / "whole", [state], sizes.params)
    base = written(whole, tmp_path / "base")

    target = written(to_meta(base, tmp_path / "between", ranks=ranks), tmp_path / "target")

    assert_same_bits(load_file(target / "model.safetensors"), load_file(base / "model.safetensors"))
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, target))
    assert after == before


def test_the_published_vocabulary_splits_into_24976_and_24977_rows(tmp_path: Path) -> None:
    """Chinese-LLaMA's 49,953 tokens over two ranks, as the published 13B files hold them."""
    sizes = replace(SMALL, dim=16, n_heads=4, n_kv_heads=2, n_layers=1, vocab_size=49953, multiple_of=6)
    state = random_state(sizes)
    parts = split_ranks(state, 2)
    source = save_original(tmp_path / "source", parts, sizes.params, pieces=49953)

    target = to_meta(written(source, tmp_path / "between"), tmp_path / "target", ranks=2)

    found = ranks_of(target)
    assert [part["output.weight"].shape[0] for part in found] == [24976, 24977]
    assert [part["tok_embeddings.weight"].shape for part in found] == [(49953, 8), (49953, 8)]
    for part, expected in zip(found, parts, strict=True):
        assert_same_bits(part, without_frequencies(expected))


def test_an_original_checkpoint_is_split_anew(tmp_path: Path) -> None:
    state = random_state(SMALL)
    source = save_original(tmp_path / "source", split_ranks(state, 4), SMALL.params)

    found = ranks_of(to_meta(source, tmp_path / "target", ranks=2))

    for part, expected in zip(found, split_ranks(state, 2), strict=True):
        assert_same_bits(part, without_frequencies(expected))


def test_without_a_rank_count_the_output_has_the_sources(tmp_path: Path) -> None:
    source = save_original(tmp_path / "source", split_ranks(random_state(SMALL), 4), SMALL.params)
    assert len(ranks_of(to_meta(source, tmp_path / "same"))) == 4
    between = written(source, tmp_path / "between")
    assert len(ranks_of(to_meta(between, tmp_path / "one"))) == 1


def test_llama_3s_embeddings_are_split_by_rows(tmp_path: Path) -> None:
    """VocabParallelEmbedding: 301 ranks of bytes and 256 special tokens over two files."""
    sizes = replace(SMALL, vocab_size=557)
    state = random_state(sizes, torch.bfloat16)
    params = {**sizes.params, "rope_theta": 500000.0, "use_scaled_rope": True}
    source = save_original(tmp_path / "source", [state], params)
    (source / "tokenizer.model").write_bytes(tiktoken_file(301))

    target = to_meta(source, tmp_path / "target", ranks=2)

    assert [part["tok_embeddings.weight"].shape for part in ranks_of(target)] == [(278, 48), (279, 48)]
    for part, expected in zip(ranks_of(target), split_ranks(state, 2, embedding_dim=0), strict=True):
        assert_same_bits(part, without_frequencies(expected))
    assert json.loads((target / "params.json").read_text()) == {**params, "vocab_size": 557}


def test_tied_embeddings_write_no_output_weight(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=True)

    target = to_meta(base, tmp_path / "target", ranks=2)

    assert all("output.weight" not in part for part in ranks_of(target))
    assert read_checkpoint(target).config.tie_word_embeddings
    back = written(target, tmp_path / "back")
    assert_same_bits(load_file(back / "model.safetensors"), load_file(base / "model.safetensors"))


def test_the_original_code_computes_what_transformers_does(tmp_path: Path) -> None:
    """A model that transformers made, run by Meta's forward pass from the files that were written."""
    model = save_llama(tmp_path / "base", torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0]

    target = to_meta(tmp_path / "base", tmp_path / "target")

    params = json.loads((target / "params.json").read_text())
    found = original_logits(ranks_of(target)[0], params, TOKENS)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
