"""Original checkpoints of Llama 3: their headers are read right; converting them is refused in this version."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from services.checkpoints.reading import TensorReader
from services.errors import UnsupportedOption, VocabularyMismatch
from services.formats.checkpoint import read_checkpoint
from services.intake import preflight
from services.jobs.requests import ConvertRequest
from services.models.store import ModelStore
from tests.reference.make_original import SMALL, Sizes, State, random_state, save_original, split_ranks
from tests.reference.tokenizer_files import tiktoken_file

SIZES = replace(SMALL, vocab_size=557)
"""301 ranks and the 256 special tokens that follow them; 557 does not divide by the rank counts."""

SCALED: dict[str, Any] = {"rope_theta": 500000.0, "use_scaled_rope": True}


def saved(folder: Path, state: State, *, ranks: int = 2, sizes: Sizes = SIZES, **params: Any) -> Path:
    parts = split_ranks(state, ranks, embedding_dim=0)
    save_original(folder, parts, {**sizes.params, "rope_theta": 500000.0, **params})
    (folder / "tokenizer.model").write_bytes(tiktoken_file(301))
    return folder


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_embeddings_joined_by_rows_are_read_right(tmp_path: Path, ranks: int) -> None:
    state = random_state(SIZES, torch.bfloat16)
    checkpoint = read_checkpoint(saved(tmp_path / "llama-3", state, ranks=ranks))
    source = checkpoint.tensors["model.embed_tokens.weight"]

    assert (source.shape, source.dtype, len(source.parts)) == ((557, 48), "BF16", ranks)
    assert [part.shape[0] for part in source.parts] == {1: [557], 2: [278, 279], 4: [139, 139, 139, 140]}[
        ranks
    ]
    with TensorReader() as reader:
        assert torch.equal(reader.load(source), state["tok_embeddings.weight"])
        head = reader.load(checkpoint.tensors["lm_head.weight"])
        assert torch.equal(head, state["output.weight"])


def test_the_tokenizers_special_tokens_count_as_rows(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(saved(tmp_path / "llama-3", random_state(SIZES)))
    assert checkpoint.vocabulary is not None
    assert (checkpoint.vocabulary.kind, checkpoint.vocabulary.size) == ("tiktoken", 557)


def test_a_tokenizer_of_other_size_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "llama-3", random_state(SIZES))
    (folder / "tokenizer.model").write_bytes(tiktoken_file(300))
    with pytest.raises(VocabularyMismatch, match=r"knows 556 tokens, the embeddings have 557 rows"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("params", "tied", "context", "scaling"),
    [
        ({}, False, 8192, None),
        (SCALED, False, 131072, 8.0),
        (SCALED, True, 131072, 32.0),
        ({**SCALED, "rope_scaling_factor": 16}, True, 131072, 16.0),
    ],
)
def test_context_and_rotary_scaling_are_those_of_the_generation(
    tmp_path: Path, params: dict[str, Any], tied: bool, context: int, scaling: float | None
) -> None:
    state = random_state(SIZES)
    if tied:
        del state["output.weight"]
    checkpoint = read_checkpoint(saved(tmp_path / "llama-3", state, **params))
    config = checkpoint.config

    assert (config.rope_theta, config.max_position_embeddings) == (500000.0, context)
    assert config.tie_word_embeddings is tied
    assert ("lm_head.weight" in checkpoint.tensors) is not tied
    if scaling is None:
        assert config.rope_scaling is None
    else:
        assert config.rope_scaling == {
            "rope_type": "llama3", "factor": scaling, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip


@pytest.mark.parametrize(("instruct", "eos"), [(False, 302), (True, [302, 309, 310])])
def test_an_instruct_model_ends_at_its_own_tokens(tmp_path: Path, instruct: bool, eos: Any) -> None:
    """The special tokens follow the ranks: 301 here, 128000 in Meta's file, whose ends are 128001, 128008 and 128009."""
    config = read_checkpoint(saved(tmp_path / "llama-3", random_state(SIZES)), instruct=instruct).config
    assert (config.bos_token_id, config.eos_token_id) == (301, eos)


def test_converting_it_is_refused_with_the_way_out(tmp_path: Path) -> None:
    saved(tmp_path / "llama-3", random_state(SIZES))
    request = ConvertRequest(kind="convert", source="llama-3", target="new")
    with pytest.raises(UnsupportedOption, match=r"'llama-3' has a tiktoken tokenizer \(Llama 3\)") as caught:
        preflight(request, ModelStore(tmp_path), {})
    assert "Hugging Face edition" in caught.value.hint
