"""Metadata of a GGUF file: configuration, vocabulary, chat template and scaling."""

import json
import stat
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.gguf_rope import rope_factors
from tests.contract.gguf_models import field, tensors_of, to_gguf
from tests.miniature import MINIATURE
from tests.reference.huggingface_model import save_llama
from tests.reference.tokenizer_files import piece_names, sentencepiece_file


def test_the_metadata_are_llama_cpps(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", rope_theta=20000.0)
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    expected = {
        "general.architecture": "llama", "general.type": "model", "general.file_type": 1,
        "llama.context_length": 64, "llama.embedding_length": 48, "llama.block_count": 3,
        "llama.feed_forward_length": 140, "llama.attention.head_count": 8, "llama.attention.head_count_kv": 4,
        "llama.rope.dimension_count": 6, "llama.vocab_size": 101, "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
    }  # fmt: skip
    assert {key: field(target, key) for key in expected} == expected
    assert field(target, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-5)
    assert field(target, "llama.rope.freq_base") == pytest.approx(20000.0)


def test_the_miniatures_pieces_scores_and_types_are_sentencepieces(tmp_path: Path) -> None:
    """Its 259 first pieces: three of control, 256 bytes (types by gguf.TokenType: unknown 2, control 3, byte 6)."""
    target = to_gguf(MINIATURE / "llama", tmp_path / "target")
    pieces = gguf.SentencePieceVocab(MINIATURE / "llama")
    expected = list(pieces.all_tokens())
    assert field(target, "tokenizer.ggml.tokens") == [text.decode() for text, _, _ in expected]
    assert field(target, "tokenizer.ggml.token_type") == [int(kind) for _, _, kind in expected]
    assert field(target, "tokenizer.ggml.scores") == pytest.approx([score for _, score, _ in expected])
    assert field(target, "tokenizer.ggml.token_type")[:4] == [2, 3, 3, 6]


def test_rows_behind_the_pieces_are_unused_padding_or_added_tokens(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(97)))
    (tmp_path / "base" / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"97": {"content": "<sep>", "special": True}}})
    )
    (tmp_path / "base" / "added_tokens.json").write_text(json.dumps({"more": 98}))

    target = to_gguf(tmp_path / "base", tmp_path / "target")

    assert field(target, "tokenizer.ggml.tokens")[96:] == ["p93", "<sep>", "more", "[PAD99]", "[PAD100]"]
    assert field(target, "tokenizer.ggml.token_type")[96:] == [1, 3, 4, 5, 5]


def test_a_chat_template_travels_on(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    assert field(to_gguf(tmp_path / "base", tmp_path / "t"), "tokenizer.chat_template") == "{{ messages }}"


def test_llama_3s_scaling_is_written_as_frequency_factors(tmp_path: Path) -> None:
    """Against transformers: its inverse frequencies are the unscaled ones over the factors."""
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64, "rope_theta": 500.0,
    }  # fmt: skip
    model = save_llama(
        tmp_path / "base", torch.float32, head_dim=12, rope_parameters=scaling, max_position_embeddings=512
    )
    unscaled = 500.0 ** -(torch.arange(0, 12, 2).float() / 12)
    expected = unscaled / model.model.rotary_emb.inv_freq

    found = tensors_of(to_gguf(tmp_path / "base", tmp_path / "target"))["rope_freqs.weight"]

    assert (found.tensor_type.name, len(found.data)) == ("F32", 6)
    assert 1 < float(expected[2]) < 8, "a frequency lies between the two"
    assert np.allclose(found.data, expected.numpy(), rtol=1e-5)


def test_linear_scaling_is_written(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    assert (field(target, "llama.rope.scaling.type"), field(target, "llama.rope.scaling.factor")) == (
        "linear",
        2.0,
    )
    assert rope_factors(read_checkpoint(tmp_path / "base").config) == {}


def test_files_are_readable_by_all(tmp_path: Path) -> None:
    save_llama(tmp_path / "base")
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    assert stat.S_IMODE((target / "model.gguf").stat().st_mode) == 0o644
    assert (target / "Modelfile").read_text() == "FROM ./model.gguf\n"
