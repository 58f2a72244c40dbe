"""Models and adapters that were written here as GGUF, loaded by llama.cpp's own server."""

import base64
import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

from services.convert import ADAPTER_FILE, ConvertOptions, convert, convert_adapter
from services.merge import merge
from services.tokenizers import complete_tokenizer, load_tokenizer
from tests.consumers.engines import complete, llama_cpp, tokenize
from tests.consumers.environments import smollm2
from tests.corpus import mixed_lines
from tests.miniature import ADAPTERS, MINIATURE, unpack_adapters
from tests.reference.families import (
    SPECIAL,
    VOCABULARY,
    byte_level_tokenizer,
    save_tiny,
    save_tiny_adapter,
)
from tests.reference.make_original import SMALL, random_state, save_original
from tests.reference.tiktoken_encoding import llama3_encoding

MODEL_FILE = "model.gguf"

QUESTIONS: Sequence[Mapping[str, str]] = json.loads(
    (MINIATURE / "questions.json").read_text(encoding="utf-8")
)

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n\n{question}\n\n### Response:\n\n"
)
"""Prompt of Chinese-Alpaca, as `examples/miniature/check_miniature.py` has it."""

NO_IMATRIX = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M",
    "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ3_M",
)  # fmt: skip
"""Encodings that need no importance matrix."""

WIDE = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
"""Sizes that are whole numbers of blocks of 256, which no mix falls back from."""

SMOLLM2_PROMPTS = ("The capital of France is", "Water boils when")

PROMPTS = ([10, 57, 200, 3, 99, 12, 76, 150, 33, 41, 5, 6, 7, 8, 9, 11, 101, 102, 103, 104], [65, 2, 128])
"""Prompts of tiny models as token ids; the first is longer than the sliding windows."""

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"num_attention_heads": 3, "num_key_value_heads": 1},
    "qwen3": {},
    "phi3": {"original_max_position_embeddings": 512, "max_position_embeddings": 2048},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3": {},
}
"""Families, and options for what llama.cpp lacks: Mistral's window, Qwen2's free head size, short LongRoPE factors below 512."""


def write_gguf(source: Path, target: Path, dtype: str) -> Path:
    """Converts a model to GGUF and returns its file."""
    target.mkdir()
    convert(source, target, ConvertOptions(output_format="gguf", dtype=dtype))
    return target / MODEL_FILE


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature with both adapters merged."""
    root = tmp_path_factory.mktemp("miniature")
    for name in ("base", "merged"):
        (root / name).mkdir()
    convert(MINIATURE / "llama", root / "base")
    adapters = zip(ADAPTERS, unpack_adapters(root), strict=True)
    merge(root / "base", [(name, folder, 1.0) for name, folder in adapters], root / "merged")
    complete_tokenizer(root / "merged")
    return root / "merged"


@pytest.mark.parametrize("dtype", NO_IMATRIX)
def test_the_merged_miniature_answers_in_every_encoding(miniature: Path, tmp_path: Path, dtype: str) -> None:
    """Of its widths 112 and 320 only the second is a whole number of blocks of 32; blocks of 256 fall back."""
    with llama_cpp(write_gguf(miniature, tmp_path / "gguf", dtype)) as client:
        found = [complete(client, ALPACA.format(**row), 40)["content"] for row in QUESTIONS]
    assert [answer.strip() for answer in found] == [row["answer"] for row in QUESTIONS]


def test_the_merged_miniatures_tokens_are_ours(miniature: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(miniature)
    lines = mixed_lines(500)
    with llama_cpp(write_gguf(miniature, tmp_path / "gguf", "F16")) as client:
        found = [tokenize(client, line) for line in lines]
    expected = [tokenizer.encode(line) for line in lines]
    assert [line for line, a, b in zip(lines, found, expected, strict=True) if a != b] == []


def trained_ranks(count: int) -> list[bytes]:
    """Trains byte-level BPE on the mixed lines; returns the tokens by rank: 256 bytes, then what each merge makes."""
    to_byte = {character: byte for byte, character in bytes_to_unicode().items()}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=count, initial_alphabet=sorted(to_byte), show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(mixed_lines(500), trainer)
    made = ["".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    merged = [bytes(to_byte[character] for character in token) for token in made]
    return [bytes([byte]) for byte in range(256)] + list(dict.fromkeys(merged))


def test_llama_3s_tokens_are_tiktokens(tmp_path: Path) -> None:
    """An original checkpoint with tiktoken's file of ranks: llama.cpp splits and merges text as tiktoken does."""
    ranks = trained_ranks(800)
    sizes = replace(SMALL, vocab_size=len(ranks) + 256)
    save_original(tmp_path / "llama", [random_state(sizes)], {**sizes.params, "rope_theta": 500000.0})
    file = tmp_path / "llama" / "tokenizer.model"
    file.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks)))
    encoding, lines = llama3_encoding(file), mixed_lines(500)
    with llama_cpp(write_gguf(tmp_path / "llama", tmp_path / "gguf", "F16")) as client:
        found = [tokenize(client, line, add_special=False) for line in lines]
    expected = [encoding.encode_ordinary(line) for line in lines]
    assert sum(token >= 256 for tokens in expected for token in tokens) > 2000
    assert [line for line, a, b in zip(lines, found, expected, strict=True) if a != b] == []


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of whole blocks."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    save_tiny("llama", folder, **WIDE)
    return folder


# transformers copies from arrays that gguf maps read-only; nothing writes to them.
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
@pytest.mark.parametrize("dtype", NO_IMATRIX)
def test_blocks_are_decoded_as_transformers_decodes_them(wide: Path, tmp_path: Path, dtype: str) -> None:
    """The difference is that of llama.cpp's activations, which it rounds to eight bits."""
    file = write_gguf(wide, tmp_path / "gguf", dtype)
    reference = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    ).eval()
    with llama_cpp(file) as client:
        found = [log_probabilities(client, ids) for ids in PROMPTS]
    for ids, logs in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert float((expected.exp() * (expected - logs)).sum()) < 0.05  # nats


def log_probabilities(client: httpx.Client, ids: list[int]) -> torch.Tensor:
    """Returns llama.cpp's for the token after a prompt. An ASCII token is forced: within a character the server tells none."""
    answer = complete(client, ids, 1, n_probs=VOCABULARY, logit_bias=[[65, 1000]])
    rows = answer["completion_probabilities"][0]["top_logprobs"]
    assert len(rows) == VOCABULARY
    return torch.tensor([row["logprob"] for row in sorted(rows, key=lambda row: int(row["id"]))])


@pytest.fixture(scope="module")
def smol(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in Hugging Face's layout, from its published GGUF file."""
    root = tmp_path_factory.mktemp("smollm2")
    for name in ("published", "hf"):
        (root / name).mkdir()
    (root / "published" / MODEL_FILE).symlink_to(smollm2())
    convert(root / "published", root / "hf")
    complete_tokenizer(root / "hf")
    return root / "hf"


@pytest.fixture(scope="module")
def smol_gguf(smol: Path) -> Path:
    """SmolLM2 written as GGUF in float16."""
    return write_gguf(smol, smol.with_name("gguf"), "F16")


@pytest.fixture(scope="module")
def smol_texts(smol: Path) -> list[tuple[str, list[int]]]:
    """Text and tokens of transformers' greedy search on the model in float32."""
    model = AutoModelForCausalLM.from_pretrained(smol, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smol)
    found = []
    for text in SMOLLM2_PROMPTS:
        prompt = tokenizer(text, return_tensors="pt")
        output = model.generate(**prompt, max_new_tokens=32, do_sample=False)
        tokens = output[0, prompt["input_ids"].shape[1] :].tolist()
        found.append((tokenizer.decode(tokens, skip_special_tokens=True), tokens))
    return found


def test_smollm2_there_and_back_has_its_tokens_and_its_text(
    smol: Path, smol_gguf: Path, smol_texts: list[tuple[str, list[int]]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smol)
    lines = mixed_lines(500)
    with llama_cpp(smol_gguf) as client:
        found = [tokenize(client, line) for line in lines]
        answers = [complete(client, prompt, 32) for prompt in SMOLLM2_PROMPTS]
    expected = tokenizer(lines, split_special_tokens=True)["input_ids"]
    assert [line for line, a, b in zip(lines, found, expected, strict=True) if a != b] == []
    assert [(answer["content"], answer["tokens"]) for answer in answers] == smol_texts


def test_smollm2_chats_by_the_template_in_its_file(smol: Path, smol_gguf: Path) -> None:
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    tokenizer = AutoTokenizer.from_pretrained(smol)
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = AutoModelForCausalLM.from_pretrained(smol, dtype=torch.float32).eval()
    length = prompt["input_ids"].shape[1]
    expected = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, length:]
    request = {"messages": chat, "temperature": 0, "max_tokens": 16}
    with llama_cpp(smol_gguf) as client:
        answer = client.post("/v1/chat/completions", json=request).raise_for_status().json()
    assert answer["usage"]["prompt_tokens"] == length
    found = answer["choices"][0]["message"]["content"]
    assert found == tokenizer.decode(expected, skip_special_tokens=True)
    assert "Paris" in found


def test_smollm2_in_four_bits_begins_as_the_original_does(
    smol: Path, smol_texts: list[tuple[str, list[int]]], tmp_path: Path
) -> None:
    with llama_cpp(write_gguf(smol, tmp_path / "gguf", "Q4_K_M")) as client:
        answers = [complete(client, prompt, 32) for prompt in SMOLLM2_PROMPTS]
    assert [answer["tokens"][0] for answer in answers] == [tokens[0] for _, tokens in smol_texts]
    assert answers[0]["content"].startswith(" Paris")


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_generates_what_transformers_does(tmp_path: Path, family: str) -> None:
    model = save_tiny(family, tmp_path / "model", dtype=torch.float32, **FAMILIES[family])
    with llama_cpp(write_gguf(tmp_path / "model", tmp_path / "gguf", "F32")) as client:
        found = [complete(client, ids, 16, ignore_eos=True)["tokens"] for ids in PROMPTS]
    assert found == [greedy(model, ids, 16, never=ends()) for ids in PROMPTS]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma3"])
def test_an_adapter_is_switched_on_and_off_by_request(tmp_path: Path, family: str) -> None:
    """With the adapter llama.cpp generates the tokens of PEFT, without it those of the base."""
    base = save_tiny(family, tmp_path / "model", dtype=torch.float32, **FAMILIES[family])
    adapter = save_tiny_adapter(tmp_path / "adapter", base)
    (tmp_path / "lora").mkdir()
    convert_adapter(tmp_path / "model", ("adapter", adapter), tmp_path / "lora", None)
    file = write_gguf(tmp_path / "model", tmp_path / "gguf", "F32")
    with llama_cpp(file, tmp_path / "lora" / ADAPTER_FILE) as client:
        found = [
            complete(client, ids, 16, ignore_eos=True, lora=[{"id": 0, "scale": scale}])["tokens"]
            for ids in PROMPTS
            for scale in (0.0, 1.0, 0.0)
        ]
    with_adapter = PeftModel.from_pretrained(copy.deepcopy(base), adapter)
    expected = [
        greedy(model, ids, 16, never=ends()) for ids in PROMPTS for model in (base, with_adapter, base)
    ]
    assert found == expected
    assert expected[0] != expected[1]


def ends() -> list[int]:
    """Ids of the tokens that `ignore_eos` excludes: those that llama.cpp knows as ends by their text."""
    tokenizer = byte_level_tokenizer()
    return [tokenizer.token_to_id(token) for token in SPECIAL if token != "<|im_start|>"]


def greedy(
    model: PreTrainedModel | PeftModel, prompt: Sequence[int], tokens: int, *, never: Sequence[int] = ()
) -> list[int]:
    """Returns the most probable continuation of a prompt, without the tokens in `never`."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(tokens):
            logits = model(torch.tensor([ids])).logits[0, -1].float()
            logits[list(never)] = float("-inf")
            ids.append(int(logits.argmax()))
    return ids[len(prompt) :]
