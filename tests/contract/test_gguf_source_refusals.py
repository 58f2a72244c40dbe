"""GGUF files that are refused before any work, each with what was found and what to do; nothing is left on the volume."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from services.architectures.checkpoint_reader import read_checkpoint
from services.convert import convert
from services.errors import (
    ConfigMismatch,
    GraftwerkError,
    IncompleteCheckpoint,
    NonFiniteTensor,
    ShapeMismatch,
    UnknownTensor,
    UnreadableFile,
    UnreadableTokenizer,
    UnsupportedFormat,
    UnsupportedOption,
    VocabularyMismatch,
    WrongModelKind,
)
from services.files.gguf_header import read_gguf_header
from services.kinds.convert import ConvertRequest
from services.kinds.merge import MergeRequest
from services.models.store import ModelStore
from services.preflight import preflight
from tests.reference.gguf_models import Encoding, byte_level_tokens, save_gguf, sentencepiece_tokens
from tests.reference.huggingface_model import save_llama
from tests.reference.peft_merge import make_adapter

SIZES: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("original")
    return save_llama(folder, torch.float32, **SIZES), folder / "tokenizer.model"


def saved(tmp_path: Path, model: tuple[Any, Path], **options: Any) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    tokens = options.pop("tokens", None) or sentencepiece_tokens(model[1])
    save_gguf(folder / "m.gguf", model[0], tokens, **options)
    return folder


# ---- metadata and tensors -----------------------------------------------------------------------------

PAIR = torch.zeros(96)

CASES: Mapping[str, tuple[dict[str, Any], type[GraftwerkError], str]] = {
    "unknown architecture": (
        {"metadata": {"general.architecture": "mamba"}}, UnsupportedFormat, "architecture 'mamba'; taken are llama",
    ),
    "experts": ({"metadata": {"expert_count": 8}}, UnsupportedFormat, r"llama.expert_count = 8; taken is 0"),
    "unknown value": (
        {"metadata": {"attention.scale": 0.5}}, UnsupportedFormat, r"llama.attention.scale = 0.5, which is not known",
    ),
    "no layers": ({"metadata": {"block_count": None}}, IncompleteCheckpoint, "has no llama.block_count"),
    "hostile layers": ({"metadata": {"block_count": 2_000_000_000}}, IncompleteCheckpoint, "announces 2000000000 layers"),
    "no heads": ({"metadata": {"attention.head_count": 0}}, ConfigMismatch, "head_count = 0; it must be a whole number"),
    "text for a number": ({"metadata": {"context_length": "much"}}, ConfigMismatch, "context_length = 'much'"),
    "odd heads": ({"metadata": {"attention.head_count_kv": 3}}, ConfigMismatch, "8 heads of 12 and 3 key-value heads"),
    "negative epsilon": (
        {"metadata": {"attention.layer_norm_rms_epsilon": -1.0}}, ConfigMismatch, "it must be a positive number",
    ),
    "partial rotation": ({"metadata": {"rope.dimension_count": 6}}, UnsupportedFormat, "dimension_count = 6; taken is 12"),
    "unknown scaling": (
        {"metadata": {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}}, UnsupportedFormat, "type 'longrope'",
    ),
    "unknown factors": (
        {"extra": {"rope_freqs.weight": torch.tensor([1.0, 1.0, 2.0, 3.0, 8.0, 8.0])}}, UnsupportedFormat,
        "frequency factors, the last 8,",
    ),
    "too few factors": ({"extra": {"rope_freqs.weight": torch.ones(5)}}, ShapeMismatch, r"is \[5\] F32; needed is \[6\] F32"),
    "width of another model": (
        {"metadata": {"feed_forward_length": 192}}, ShapeMismatch, r"'blk.0.ffn_\w+.weight' has shape .*; its metadata needs",
    ),
    "rows of another vocabulary": ({"metadata": {"vocab_size": 99}}, ConfigMismatch, "'token_embd.weight' has 101 rows"),
    "missing tensor": (
        {"leave_out": ("blk.1.attn_q.weight",)}, IncompleteCheckpoint, "1 of 21 tensors .* the first is 'blk.1.attn_q.weight'",
    ),
    "missing embeddings": ({"leave_out": ("token_embd.weight",)}, IncompleteCheckpoint, "'token_embd.weight'"),
    "extra tensor": ({"extra": {"blk.0.attn_q_norm.weight": PAIR}}, UnknownTensor, "holds 'blk.0.attn_q_norm.weight'"),
    "tensor of numbers": (
        {"leave_out": ("output_norm.weight",), "raw": {"output_norm.weight": (torch.zeros(96, dtype=torch.int32).numpy(), Encoding.I32)}},
        UnsupportedFormat, "'output_norm.weight' is of type I32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_understood_is_refused_by_name(
    tmp_path: Path, model: tuple[Any, Path], case: str
) -> None:
    options, error, message = CASES[case]
    with pytest.raises(error, match=message) as caught:
        read_checkpoint(saved(tmp_path, model, **options))
    assert caught.value.hint


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path, model: tuple[Any, Path]) -> None:
    tokens = sentencepiece_tokens(model[1], added=[("<|user|>", 3)])
    with pytest.raises(VocabularyMismatch, match="102 tokens and 101 rows"):
        read_checkpoint(saved(tmp_path, model, tokens=tokens))


def test_every_truncation_of_the_header_is_refused(tmp_path: Path, model: tuple[Any, Path]) -> None:
    path = saved(tmp_path, model) / "m.gguf"
    whole = path.read_bytes()
    for length in [*range(0, 6000, 97), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises((UnreadableFile, UnsupportedFormat)):
            read_checkpoint(path.parent)


def test_a_hostile_number_of_tokens_is_refused(tmp_path: Path, model: tuple[Any, Path]) -> None:
    path = saved(tmp_path, model) / "m.gguf"
    data = path.read_bytes()
    at = data.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 4 + 4
    path.write_bytes(data[:at] + struct.pack("<Q", 2**40) + data[at + 8 :])
    with pytest.raises(UnreadableFile, match="1099511627776 more than the 1000000 that are left"):
        read_checkpoint(path.parent)


def test_a_scale_that_is_not_finite_stops_the_work(tmp_path: Path, model: tuple[Any, Path]) -> None:
    folder = saved(tmp_path, model, encoding="Q8_0")
    target = tmp_path / "target"
    target.mkdir()
    path = folder / "m.gguf"
    at = read_gguf_header(path).tensors["blk.1.ffn_down.weight"].offset + 7 * 34
    data = path.read_bytes()
    path.write_bytes(data[:at] + b"\x00\x7c" + data[at + 2 :])  # infinity as a block's scale
    with pytest.raises(
        NonFiniteTensor, match=r"down_proj.weight' holds 3[12] values of NaN or infinity among 15360"
    ):
        convert(folder, target)


# ---- several files ------------------------------------------------------------------------------------


def test_several_models_in_one_folder_are_refused(tmp_path: Path, model: tuple[Any, Path]) -> None:
    folder = saved(tmp_path, model)
    (folder / "n.gguf").write_bytes((folder / "m.gguf").read_bytes())
    with pytest.raises(UnsupportedFormat, match=r"holds 2 GGUF models \(m.gguf, n.gguf\)"):
        read_checkpoint(folder)


def test_a_missing_part_is_named(tmp_path: Path, model: tuple[Any, Path]) -> None:
    folder = saved(tmp_path, model)
    (folder / "m.gguf").rename(folder / "m-00001-of-00003.gguf")
    with pytest.raises(IncompleteCheckpoint, match=r"m-00002-of-00003\.gguf is missing"):
        read_checkpoint(folder)


def test_parts_of_different_models_are_refused(tmp_path: Path, model: tuple[Any, Path]) -> None:
    folder = saved(tmp_path, model)
    (folder / "m-00001-of-00002.gguf").write_bytes((folder / "m.gguf").read_bytes())
    (folder / "m.gguf").rename(folder / "m-00002-of-00002.gguf")
    with pytest.raises(UnreadableFile, match=r"one of 2 files, whose headers say numbers \[0, 0\] of 1"):
        read_checkpoint(folder)


# ---- tokenizers ---------------------------------------------------------------------------------------

BYTES = [chr(n) for n in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]][:90]
WORDS = [*BYTES, "ab", "abc"]
MERGES = ["a b", "ab c"]

TOKENIZERS: Mapping[str, tuple[dict[str, Any], str]] = {
    "pre-tokenizer of another kind": ({"pre": "viking"}, "pre is 'viking'; known are gpt-2"),
    "no pre-tokenizer": ({"pre": None}, "pre is None, so that its splitting of text is not known"),
    "default pre-tokenizer": (
        {"pre": "default"},
        "pre is 'default', so that its splitting of text is not known",
    ),
    "merge of other tokens": ({"merges": ["a q2"]}, r"the merge 'a' \+ 'q2' is not of its tokens"),
    "merge of one token": ({"merges": ["ab"]}, "the merge 'ab' is not two tokens"),
    "token that is not bytes": ({"tokens": [*WORDS, "好"]}, "the token '好' is not written in bytes"),
    "the same token twice": ({"tokens": [*WORDS, "ab"]}, "2 of its tokens are 'ab'"),
    "unknown type": ({"types": [9] * len(WORDS)}, "each needs one from 1 to 6"),
    "id beyond the tokens": ({"bos_token_id": 92}, "bos_token_id is 92; the last token has the id 91"),
    "text for a flag": ({"add_bos_token": 3}, "add_bos_token is 3; it must be true or false"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers_that_cannot_be_rebuilt_are_refused(
    tmp_path: Path, model: tuple[Any, Path], case: str
) -> None:
    changes, message = TOKENIZERS[case]
    options = {"tokens": WORDS, "merges": MERGES, "pre": "gpt-2", **changes}
    with pytest.raises(
        UnreadableTokenizer, match=f"The tokenizer of m.gguf cannot be rebuilt: .*{message}"
    ) as caught:
        read_checkpoint(saved(tmp_path, model, tokens=byte_level_tokens(**options)))
    assert caught.value.hint


@pytest.mark.parametrize("kind", ["bert", "t5", "none"])
def test_tokenizers_of_other_kinds_are_refused(tmp_path: Path, model: tuple[Any, Path], kind: str) -> None:
    def add(writer: Any) -> None:
        writer.add_tokenizer_model(kind)

    with pytest.raises(UnreadableTokenizer, match=f"tokenizer.ggml.model is '{kind}'.*taken are 'llama'"):
        read_checkpoint(saved(tmp_path, model, tokens=add))


# ---- requests -----------------------------------------------------------------------------------------


def on_the_volume(tmp_path: Path, model: tuple[Any, Path], **options: Any) -> ModelStore:
    saved(tmp_path, model, **options).rename(tmp_path / "m")
    return ModelStore(tmp_path)


def test_a_merge_says_how_to_convert_it(tmp_path: Path, model: tuple[Any, Path]) -> None:
    store = on_the_volume(tmp_path, model)
    make_adapter(tmp_path / "adapter", seed=3)
    request = MergeRequest(kind="merge", base="m", adapters=["adapter"], target="t")
    with pytest.raises(WrongModelKind, match="'m' is of kind 'gguf'") as caught:
        preflight(request, store, ())
    assert caught.value.hint == "Convert it first: graftwerk convert m m-hf"


def test_a_gguf_file_does_not_become_another_one(tmp_path: Path, model: tuple[Any, Path]) -> None:
    store = on_the_volume(tmp_path, model)
    request = ConvertRequest(kind="convert", source="m", target="t", output_format="gguf", dtype="q8_0")
    with pytest.raises(UnsupportedOption, match="'m' is a GGUF file already"):
        preflight(request, store, ())


def test_a_byte_level_tokenizer_does_not_fit_metas_layout(tmp_path: Path, model: tuple[Any, Path]) -> None:
    store = on_the_volume(tmp_path, model, tokens=byte_level_tokens(WORDS, MERGES, "gpt-2", rows=101))
    request = ConvertRequest(kind="convert", source="m", target="t", output_format="meta")
    with pytest.raises(UnsupportedOption, match="byte-level tokenizer, which Meta's layout cannot hold"):
        preflight(request, store, ())
