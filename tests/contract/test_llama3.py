"""Original checkpoints of Llama 3, 3.1 and 3.2: read, converted, and compared with the original forward pass."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.tensor_reader import TensorReader
from services.errors import UnsupportedOption, VocabularyMismatch
from services.kinds.convert import ConvertRequest
from services.tokenizers import load_tokenizer
from tests.job_context import job_context
from tests.reference.make_original import SMALL, Sizes, State, random_state, save_original, split_ranks
from tests.reference.original_llama import original_logits
from tests.reference.tokenizer_files import piece_names, sentencepiece_file, tiktoken_file
from worker.models import convert as convert_job

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
    with pytest.raises(VocabularyMismatch, match=r"knows 556 tokens; the embeddings have 557 rows"):
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


# ---- converted ----------------------------------------------------------------------------------------

TOKENS = torch.randint(0, 557, (300,), generator=torch.Generator().manual_seed(3)).tolist()
"""Long enough for the slow pairs of the rotation to matter."""

BETWEEN = 16000.0
"""A rotary base that puts one of the three pairs between slow and fast, where frequencies are interpolated."""


def made(store: Path, **request: Any) -> tuple[Path, dict[str, Any]]:
    """The folder and the result of a convert job's work."""
    wanted = ConvertRequest(kind="convert", source="llama-3", target="new", **request)
    result = convert_job.run(wanted, job_context(store)).model_dump(exclude_unset=True)
    return store / "new", dict(result)


def logits_of(folder: Path) -> torch.Tensor:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("ranks", "tied", "params", "factor"),
    [
        (1, False, {}, None),
        (2, False, {"use_scaled_rope": True}, 8.0),
        (4, True, {"use_scaled_rope": True}, 32.0),
        (2, False, {"use_scaled_rope": True, "rope_theta": BETWEEN}, 8.0),
        (1, True, {"use_scaled_rope": True, "rope_theta": BETWEEN}, 32.0),
    ],
)
def test_the_converted_model_computes_the_original_logits(
    tmp_path: Path, ranks: int, tied: bool, params: dict[str, Any], factor: float | None
) -> None:
    state = random_state(SIZES, torch.bfloat16)
    if tied:
        del state["output.weight"]
    saved(tmp_path / "llama-3", state, ranks=ranks, **params)

    folder, result = made(tmp_path)
    found = logits_of(folder)

    facts = {**SIZES.params, "rope_theta": 500000.0, **params, "rope_scaling_factor": factor}
    assert relative_difference(found, original_logits(state, facts, TOKENS)) < 2e-5
    if factor:
        unscaled = original_logits(state, {**facts, "use_scaled_rope": False}, TOKENS)
        other = original_logits(state, {**facts, "rope_scaling_factor": 40 - factor}, TOKENS)
        assert relative_difference(found, unscaled) > 1e-3
        assert relative_difference(found, other) > 1e-4
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
    assert (result["ranks"], result["tokenizer_parity"]) == (ranks, {"lines": 300, "different": 0})


def test_an_output_that_shares_the_embeddings_bytes_is_tied(tmp_path: Path) -> None:
    """torch saves tied weights as two names of one storage; that is what tells 3.2 from 3.1."""
    state = random_state(SIZES, torch.bfloat16)
    state["output.weight"] = state["tok_embeddings.weight"]
    saved(tmp_path / "llama-3", {}, ranks=1, use_scaled_rope=True)
    torch.save(state, tmp_path / "llama-3" / "consolidated.00.pth")

    folder, result = made(tmp_path)

    config = json.loads((folder / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["rope_scaling"]["factor"]) == (True, 32.0)
    assert result["dropped"] == ["rope.freqs", "output.weight"]
    facts = {**SIZES.params, "rope_theta": 500000.0, "use_scaled_rope": True, "rope_scaling_factor": 32.0}
    assert relative_difference(logits_of(folder), original_logits(state, facts, TOKENS)) < 2e-5


def test_an_output_of_equal_values_but_its_own_bytes_stays(tmp_path: Path) -> None:
    state = random_state(SIZES)
    state["output.weight"] = state["tok_embeddings.weight"].clone()
    saved(tmp_path / "llama-3", state, ranks=1)
    assert not read_checkpoint(tmp_path / "llama-3").config.tie_word_embeddings


@pytest.mark.parametrize("scaled", [False, True])
def test_the_folder_of_an_instruct_model_is_whole(tmp_path: Path, scaled: bool) -> None:
    source = saved(tmp_path / "llama-3", random_state(SIZES), use_scaled_rope=scaled)
    folder, _ = made(tmp_path, instruct=True)

    assert (folder / "tokenizer.model").read_bytes() == (source / "tokenizer.model").read_bytes()
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [302, 309, 310]
    found = AutoTokenizer.from_pretrained(folder)
    assert (found.bos_token_id, found.eos_token_id, found.convert_ids_to_tokens(310)) == (
        301,
        310,
        "<|eot_id|>",
    )
    assert found.convert_ids_to_tokens(309) == ("<|eom_id|>" if scaled else "<|reserved_special_token_4|>")
    assert found("run3 x")["input_ids"] == [301, *load_tokenizer(folder).encode("run3 x", add_bos=False)]
    asked = found.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)
    assert asked["input_ids"][:2] == [301, 307]


def test_instruct_is_refused_where_the_model_says_it_itself(tmp_path: Path) -> None:
    source = saved(tmp_path / "llama-3", random_state(SIZES))
    (source / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(557)))
    with pytest.raises(
        UnsupportedOption, match=r"original Llama 3 checkpoint.* with sentencepiece tokenizer"
    ):
        made(tmp_path, instruct=True)
