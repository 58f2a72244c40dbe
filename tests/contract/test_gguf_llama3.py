"""GGUF of Llama 3: its tokenizer in the file, rebuilt from there and compared with tiktoken; its logits with transformers."""

import base64
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from services.checkpoints.write_hooks import WriteHooks
from services.convert import ConvertOptions, convert
from services.files.gguf_header import read_gguf_header
from services.merge import MergeOptions, merge
from services.tokenizers import complete_tokenizer
from services.verify import verify_merge
from tests.corpus import mixed_lines
from tests.reference.huggingface_model import save_llama
from tests.reference.make_original import SMALL, random_state, save_original, split_ranks
from tests.reference.peft_merge import make_adapter
from tests.reference.tiktoken_encoding import llama3_encoding
from tests.reference.tokenizer_files import tiktoken_file
from tests.tokenizer_sets import TokenizerSet

SIZES = replace(SMALL, vocab_size=557)
"""301 ranks and the 256 special tokens that follow them."""

TOKENS = [301, 57, 100, 3, 299, 12, 76, 310]
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""gguf.TokenType's numbers."""

pytestmark = [
    # transformers copies from arrays that gguf maps read-only; nothing writes to them.
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning"),
]


def original(folder: Path, **params: Any) -> Path:
    parts = split_ranks(random_state(SIZES), 2, embedding_dim=0)
    save_original(folder, parts, {**SIZES.params, "rope_theta": 500000.0, **params})
    (folder / "tokenizer.model").write_bytes(tiktoken_file(301))
    return folder


def to_gguf(source: Path, target: Path, **options: Any) -> Path:
    target.mkdir()
    convert(source, target, ConvertOptions(output_format="gguf", **options))
    return target


def field(folder: Path, key: str) -> Any:
    found = gguf.GGUFReader(folder / "model.gguf").get_field(f"tokenizer.{key}")
    return None if found is None else found.contents()


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return cast(torch.Tensor, model(torch.tensor([TOKENS])).logits[0].float())


# ---- small and made up --------------------------------------------------------------------------------


def test_tokens_stand_in_gpt_2s_alphabet_and_special_ones_are_control(tmp_path: Path) -> None:
    """Byte 0x20 is Ġ and byte 0 is Ā there; the made-up runs are ASCII and stand for themselves."""
    target = to_gguf(original(tmp_path / "llama-3"), tmp_path / "target")
    tokens, types = field(target, "ggml.tokens"), field(target, "ggml.token_type")
    assert (field(target, "ggml.model"), field(target, "ggml.pre")) == ("gpt2", "llama-bpe")
    assert [tokens[i] for i in (0, 0x20, 0x41, 256, 300)] == ["Ā", "Ġ", "A", "run0", "run44"]
    assert tokens[301:304] == ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"]
    assert (len(tokens), types) == (557, [NORMAL] * 301 + [CONTROL] * 256)
    assert field(target, "ggml.scores") is None


def test_merges_are_every_split_of_a_token_in_the_order_of_ranks(tmp_path: Path) -> None:
    ranks = [bytes([n]) for n in range(256)] + [b"ab", b"bc", b"abc", b" a"]
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks))
    save_llama(tmp_path / "base", vocab_size=260 + 256)
    (tmp_path / "base" / "tokenizer.model").write_bytes(lines)
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    assert field(target, "ggml.merges") == ["a b", "b c", "a bc", "ab c", "Ġ a"]


@pytest.mark.parametrize(
    ("scaled", "instruct", "eos"),
    [(False, False, 302), (True, False, 302), (False, True, 310), (True, True, 310)],
)
def test_begin_end_and_end_of_turn_are_those_of_the_edition(
    tmp_path: Path, scaled: bool, instruct: bool, eos: int
) -> None:
    source = original(tmp_path / "llama-3", use_scaled_rope=scaled)
    target = to_gguf(source, tmp_path / "target", instruct=instruct)
    tokens = field(target, "ggml.tokens")
    assert (field(target, "ggml.bos_token_id"), field(target, "ggml.eos_token_id")) == (301, eos)
    assert (field(target, "ggml.eot_token_id"), tokens[310]) == (310, "<|eot_id|>")
    assert tokens[309] == ("<|eom_id|>" if scaled else "<|reserved_special_token_4|>")
    assert (field(target, "ggml.add_bos_token"), field(target, "ggml.add_eos_token")) == (True, False)
    assert (field(target, "chat_template") is not None) is instruct


def test_the_chat_template_writes_metas_turns(tmp_path: Path) -> None:
    target = to_gguf(original(tmp_path / "llama-3"), tmp_path / "target", instruct=True)
    found = AutoTokenizer.from_pretrained(target, gguf_file="model.gguf")
    asked = found.apply_chat_template(
        [{"role": "user", "content": " x "}], tokenize=False, add_generation_prompt=True
    )
    assert asked == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nx<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_the_folder_of_a_conversion_gives_the_file_of_its_source(tmp_path: Path) -> None:
    """By way of Hugging Face's layout, whose small files name the tokens."""
    source = original(tmp_path / "llama-3", use_scaled_rope=True)
    (tmp_path / "hf").mkdir()
    convert(source, tmp_path / "hf", ConvertOptions(instruct=True))
    complete_tokenizer(tmp_path / "hf", instruct=True)
    direct = to_gguf(source, tmp_path / "direct", instruct=True)
    by_way = to_gguf(tmp_path / "hf", tmp_path / "by-way")
    for key in ("tokens", "token_type", "merges", "bos_token_id", "eos_token_id", "eot_token_id"):
        assert field(direct, f"ggml.{key}") == field(by_way, f"ggml.{key}"), key
    assert field(direct, "chat_template") == field(by_way, "chat_template")


def test_tokens_added_behind_and_rows_of_padding_are_what_they_are(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", vocab_size=560)
    (tmp_path / "base" / "tokenizer.model").write_bytes(tiktoken_file(301))
    (tmp_path / "base" / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"557": {"content": "<think>", "special": false}}}'
    )
    target = to_gguf(tmp_path / "base", tmp_path / "target")
    assert field(target, "ggml.tokens")[556:] == [
        "<|reserved_special_token_250|>", "<think>", "[PAD558]", "[PAD559]",
    ]  # fmt: skip
    assert field(target, "ggml.token_type")[556:] == [CONTROL, USER_DEFINED, UNUSED, UNUSED]


@pytest.mark.parametrize("params", [{}, {"use_scaled_rope": True}], ids=["3", "3.1"])
def test_transformers_computes_the_same_logits_from_the_file(tmp_path: Path, params: dict[str, Any]) -> None:
    source = original(tmp_path / "llama-3", **params)
    (tmp_path / "hf").mkdir()
    convert(source, tmp_path / "hf")
    expected = logits_of(LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval())
    target = to_gguf(source, tmp_path / "target")
    # transformers reads no rope_freqs.weight, so it is told the scaling; the factors have a test of their own
    config = LlamaConfig.from_pretrained(tmp_path / "hf")
    read: Any = AutoModelForCausalLM.from_pretrained
    loaded = read(target, gguf_file="model.gguf", config=config, dtype=torch.float32).eval()
    found = logits_of(loaded)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_merge_into_the_file_passes_its_check(tmp_path: Path) -> None:
    base = original(tmp_path / "llama-3")
    adapter = make_adapter(tmp_path / "adapter", seed=1)
    (tmp_path / "target").mkdir()
    options = MergeOptions(output_format="gguf")
    merged = merge(base, [("adapter", adapter, 1.0)], tmp_path / "target", options=options)
    report = verify_merge(merged, options, WriteHooks())
    assert (report.passed, report.vocabulary_size, report.tokenizer_size) == (True, 557, 557)


# ---- a trained tokenizer ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokenizers: TokenizerSet) -> Path:
    """A small model with trained ranks and 256 special tokens, as GGUF."""
    folder = tmp_path_factory.mktemp("llama-3")
    first = tokenizers.ranks
    sizes = {"vocab_size": first + 256, "hidden_size": 16, "intermediate_size": 24}
    save_llama(folder / "base", **sizes, bos_token_id=first, eos_token_id=first + 1)
    shutil.copy(tokenizers.file("llama3"), folder / "base" / "tokenizer.model")
    return to_gguf(folder / "base", folder / "target")


@pytest.fixture(scope="module")
def rebuilt(trained: Path) -> Any:
    """The tokenizer that transformers builds from the file."""
    return AutoTokenizer.from_pretrained(trained, gguf_file="model.gguf")


def test_the_tokenizer_in_the_file_encodes_and_decodes_every_line_as_tiktoken_does(
    rebuilt: Any, tokenizers: TokenizerSet
) -> None:
    lines, expected = mixed_lines(), llama3_encoding(tokenizers.file("llama3"))
    special = ("<|eot_id|>", "<|begin_of_text|>")  # the file's reader takes them for what they look like
    lines = [line for line in lines if not any(token in line for token in special)]
    assert len(lines) > 900
    ids = [rebuilt(line, add_special_tokens=False)["input_ids"] for line in lines]
    assert [line for line, own in zip(lines, ids, strict=True) if own != expected.encode_ordinary(line)] == []
    assert [
        line for line, own in zip(lines, ids, strict=True) if rebuilt.decode(own) != expected.decode(own)
    ] == []


def test_special_tokens_of_a_trained_tokenizer_have_their_numbers(
    trained: Path, rebuilt: Any, tokenizers: TokenizerSet
) -> None:
    first = tokenizers.ranks
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    assert rebuilt.convert_tokens_to_ids(names) == [first, first + 1, first + 6, first + 7, first + 9]
    assert rebuilt("x")["input_ids"][0] == first
    header = read_gguf_header(trained / "model.gguf").metadata
    assert header["tokenizer.ggml.tokens"].length == first + 256
    # of the published one as many as Meta's tokenizer.json lists
    assert header["tokenizer.ggml.merges"].length == tokenizers.merges
