"""Sound files of each format, and the cases that are made from them: a folder's other files, and the strategy of the one that varies."""

import json
import struct
import zipfile
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.fuzz.mutations import VALUES, either, mutated_bytes, mutated_json, pieces_of
from tests.hostile_files import ADAPTER, safetensors
from tests.reference.tensor_files import (
    llama_config,
    llama_shapes,
    pair_shapes,
    piece_names,
    safetensors_file,
)
from tests.reference.tokenizer_files import sentencepiece_file, tiktoken_file
from tests.reference.torch_files import state_pickle, tensor, torch_archive
from tests.unit.test_gguf_header import ARRAY, DATA, ENTRIES, F32, STRING, TENSORS, U32, header

PAIRS = safetensors_file(pair_shapes())
WEIGHTS = safetensors_file(llama_shapes())
CONFIG = llama_config()
ADAPTER_CONFIG = {
    **ADAPTER, "r": 8, "target_modules": ["q_proj", "v_proj"], "modules_to_save": None, "rank_pattern": {"q_proj": 8, r"layers\.\d+\.v": 8},
    "alpha_pattern": {}, "trainable_token_indices": None, "base_model_name_or_path": "org/name", "use_dora": False,
}  # fmt: skip
PIECES = sentencepiece_file(piece_names(101))
SHAPES = {"a.weight": (3, 5), "b.weight": (7,)}
ARCHIVE = {"data/0": bytes(30), "data/1": bytes(14)}
PICKLE_PARTS = (
    b"}", b"(", b"]", b")", b"t", b"\x85", b"\x86", b"\x87", b"s", b"u", b"e", b"a", b"R", b"b", b"Q", b"q\x00", b"h\x00", b"K\x01", b"N",
    b"X\x01\x00\x00\x00w", b"\x8a\x09" + b"\xff" * 9, b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"I01\n", b"0", b"2", b".",
    tensor("0", (3, 5)),
)  # fmt: skip
TOKENIZER = {
    "added_tokens": [{"id": 4, "content": "<|x|>", "special": True}], "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel", "use_regex": True}]}, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3}, "merges": [["a", "b"]]},
}  # fmt: skip
UNIGRAM = {
    "added_tokens": [],
    "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]},
}
SIDE: Mapping[str, Any] = {
    "tokenizer_config.json": {
        "added_tokens_decoder": {"4": {"content": "<|x|>", "special": True}}, "bos_token": "<s>", "eos_token": {"content": "</s>"},
        "additional_special_tokens": ["<|y|>"], "add_bos_token": True, "chat_template": [{"name": "default", "template": "{{ x }}"}],
    },
    "special_tokens_map.json": {"bos_token": "<s>", "additional_special_tokens": [{"content": "<|z|>"}]},
    "added_tokens.json": {"<|x|>": 4}, "generation_config.json": {"eos_token_id": [1, 2]},
    "chat_template.json": {"chat_template": "{{ messages }}"}, "params.json": {"model": {"dim": 48, "use_scaled_rope": True}},
}  # fmt: skip
MANIFEST = {
    "kind": "adapter", "created_at": "2026-01-01T00:00:00Z", "operation": "import", "digest": "00", "files": {"a": "00"}, "warnings": ["w"],
    "inputs": [{"role": "source", "name": "{'path': 'incoming/a'}", "commit": "0" * 40}], "options": {"a": 1},
    "tensors": {"a": {"dtype": "F16", "shape": [1], "sha256": "00"}}, "versions": {"torch": "2"}, "job_id": None,
}  # fmt: skip
INDEX = {
    "metadata": {"total_size": 1},
    "weight_map": dict.fromkeys(llama_shapes(), "model-00001-of-00001.safetensors"),
}
PARAMS = {
    "dim": 48,
    "n_layers": 3,
    "n_heads": 6,
    "norm_eps": 1e-5,
    "vocab_size": 101,
    "multiple_of": 16,
    "rope_theta": 1e4,
}
LLAMA_GGUF = [
    *ENTRIES, ("tokenizer.ggml.model", STRING, "llama"), ("tokenizer.ggml.token_type", ARRAY, (U32, [2, 3, 1])),
    ("llama.embedding_length", U32, 64), ("llama.attention.head_count", U32, 2), ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
]  # fmt: skip
GGUF = header(LLAMA_GGUF, TENSORS)


class Case(NamedTuple):
    """Sound files of a folder, the name of the one that varies, and its content's strategy."""

    others: Mapping[str, bytes]
    name: str
    content: st.SearchStrategy[bytes]


def _json_of(**files: Any) -> dict[str, bytes]:
    return {name.replace("__", "."): json.dumps(content).encode() for name, content in files.items()}


def _archived(pickle: bytes) -> bytes:
    return torch_archive({"data.pkl": pickle, **ARCHIVE})


def _zip() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("llama/params.json", "llama/consolidated.00.pth", "llama/é.txt"):
            archive.writestr(name, b"x" * 100)
    return out.getvalue()


def _header_of(weights: bytes) -> Any:
    return json.loads(weights[8 : 8 + struct.unpack("<Q", weights[:8])[0]])


def _with_header(data: bytes) -> st.SearchStrategy[bytes]:
    """Safetensors files whose header is a mutated one, of the right length."""
    size = 8 + struct.unpack("<Q", data[:8])[0]
    return mutated_json(_header_of(data)).map(lambda text: safetensors(text, data[size:]))


ADAPTER_FILES = {**_json_of(adapter_config__json=ADAPTER_CONFIG), "adapter_model.safetensors": PAIRS}
BASE_FILES = {**_json_of(config__json=CONFIG), "model.safetensors": WEIGHTS, "tokenizer.model": PIECES}
SHARDED = {**_json_of(config__json=CONFIG), "model-00001-of-00001.safetensors": WEIGHTS}

CASES: Mapping[str, Case] = {
    "safetensors": Case(BASE_FILES, "model.safetensors", either(mutated_bytes(WEIGHTS), _with_header(WEIGHTS))),
    "adapter's safetensors": Case(ADAPTER_FILES, "adapter_model.safetensors", either(mutated_bytes(PAIRS), _with_header(PAIRS))),
    "torch archive": Case(
        ADAPTER_FILES, "adapter_model.bin", mutated_bytes(torch_archive({"data.pkl": state_pickle(SHAPES), **ARCHIVE}))),
    "pickle": Case(
        _json_of(config__json=CONFIG), "pytorch_model.bin",
        either(mutated_bytes(state_pickle(SHAPES)), pieces_of(*PICKLE_PARTS).map(lambda data: b"\x80\x02" + data + b"."), form=_archived)),
    "GGUF": Case({}, "model.gguf", either(
        mutated_bytes(GGUF).map(lambda head: head + DATA), pieces_of(*(header([entry], [])[24:] for entry in LLAMA_GGUF)).map(
            lambda entries: b"GGUF" + struct.pack("<IQQ", 3, 0, 3) + entries + DATA))),
    "config.json": Case(BASE_FILES, "config.json", either(mutated_json(CONFIG), mutated_json({**CONFIG, "rope_scaling": {"type": "x"}}))),
    "adapter_config.json": Case(ADAPTER_FILES, "adapter_config.json", mutated_json(ADAPTER_CONFIG)),
    "params.json": Case(
        {"consolidated.00.pth": torch_archive({"data.pkl": state_pickle(SHAPES), **ARCHIVE})}, "params.json", mutated_json(PARAMS)),
    "manifest": Case(ADAPTER_FILES, "manifest.json", either(
        mutated_json(MANIFEST), mutated_bytes(json.dumps(MANIFEST).encode()), VALUES.map(lambda value: json.dumps(value).encode()))),
    "index": Case(SHARDED, "model.safetensors.index.json", mutated_json(INDEX)),
    "tokenizer.json": Case({}, "tokenizer.json", either(
        mutated_json(TOKENIZER), mutated_json(UNIGRAM), mutated_bytes(json.dumps(TOKENIZER).encode()))),
    "tokenizer.model": Case({}, "tokenizer.model", either(mutated_bytes(PIECES), mutated_bytes(tiktoken_file(300)))),
    **{
        name: Case(_json_of(**{other.replace(".", "__"): SIDE[other] for other in SIDE if other != name}), name, mutated_json(SIDE[name]))
        for name in SIDE
    },
    "model card": Case(ADAPTER_FILES, "README.md", either(
        mutated_bytes(b"---\nlicense: mit\nbase_model: org/name\ntags: [a, &x b, *x]\n---\n"))),
    "zip": Case({}, "a.zip", mutated_bytes(_zip())),
}  # fmt: skip
