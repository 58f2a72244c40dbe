"""Folders that hang or kill a careless reader, each made by a few lines, and large ones that must be read."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.reference.tokenizer_files import sentencepiece_file, tiktoken_file
from tests.reference.torch_files import tensor, torch_archive

MIB = 2**20
HEAD = b"\x80\x02"
EMPTY_MAPPING = b"ccollections\nOrderedDict\n)R"
ADAPTER: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
MODULE = "model.layers.0.self_attn.q_proj"


def pickled(opcodes: bytes) -> Callable[[Path], None]:
    """Returns a maker of a Hugging Face folder whose weights have this pickle."""

    def make(folder: Path) -> None:
        config(folder, {"model_type": "llama"})
        (folder / "pytorch_model.bin").write_bytes(torch_archive({"data.pkl": HEAD + opcodes + b"."}))

    return make


def config(folder: Path, content: Any) -> None:
    """Writes `config.json`."""
    (folder / "config.json").write_text(json.dumps(content))


def nested_keys() -> bytes:
    """Returns a mapping whose key is a tuple of two times a tuple of two times …, fifty deep: its hash takes 2**50 steps."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(50))
    return b"}q\xff)q\x00" + pairs + b"K\x01s"


def copied_mappings() -> bytes:
    """Returns a mapping of 2,000 items that is copied 1,500 times."""
    items = b"".join(b"X\x04\x00\x00\x00%04dK\x01" % number for number in range(2000))
    return EMPTY_MAPPING + b"q\x00(" + items + b"u" + b"ccollections\nOrderedDict\nh\x00\x85R" * 1500


def adapter(module: str = MODULE, **changes: Any) -> Callable[[Path], None]:
    """Returns a maker of a sound adapter of one module, with changes to its configuration."""

    def make(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({**ADAPTER, **changes}))
        key = f"base_model.model.{module}.lora_"
        entries = {
            f"{key}{half}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 32]}
            for half, shape, at in (("A", [2, 4], 0), ("B", [4, 2], 32))
        }
        (folder / "adapter_model.safetensors").write_bytes(
            safetensors(json.dumps(entries).encode(), bytes(64))
        )

    return make


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    """Returns a file with this header."""
    return struct.pack("<Q", len(header)) + header + data


def weights(header: bytes, data: bytes = b"") -> Callable[[Path], None]:
    """Returns a maker of a Hugging Face folder whose safetensors file has this header."""

    def make(folder: Path) -> None:
        config(folder, {"model_type": "llama"})
        (folder / "model.safetensors").write_bytes(safetensors(header, data))

    return make


def empty_tensors(count: int) -> bytes:
    """Returns the header of tensors without elements."""
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(entry % number for number in range(count)) + b"}"


def gguf_array(kind: int, count: int, item_bytes: int) -> Callable[[Path], None]:
    """Returns a maker of a GGUF file whose only entry is an array of zeros; the file is sparse."""

    def make(folder: Path) -> None:
        head = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, kind, count)
        with (folder / "model.gguf").open("wb") as file:
            file.write(head)
            file.truncate(len(head) + count * item_bytes)

    return make


def file_of(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    """Returns a maker of a folder with one file."""
    return lambda folder: (folder / name).write_bytes(content()) and None


def pipe(name: str, *others: str) -> Callable[[Path], None]:
    """Returns a maker of a folder with a named pipe that has no writer."""

    def make(folder: Path) -> None:
        os.mkfifo(folder / name)
        for other in others:
            (folder / other).write_text("{}")

    return make


def manifest(tensors: int) -> bytes:
    """Returns a manifest as the service writes it, with this number of tensors."""
    entry = b'  "model.layers.%06d.weight": {\n   "dtype": "BF16",\n   "shape": [\n    4096,\n    4096\n   ],\n   "sha256": "%064x"\n  }'
    start = b'{\n "kind": "huggingface",\n "created_at": "2026-01-01T00:00:00Z",\n "operation": "convert",\n "tensors": {\n'
    return start + b",\n".join(entry % (number, number) for number in range(tensors)) + b"\n }\n}"


def small_objects(size_bytes: int) -> bytes:
    """Returns a JSON object that is full of empty ones."""
    return b'{"a":[' + b"{}," * (size_bytes // 3) + b"{}]}"


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickle: keys of nested tuples": (pickled(nested_keys()), "tuple"),
    "pickle: mapping copied 1,500 times": (pickled(copied_mappings()), "pickle is damaged"),
    "pickle: 7 MiB of empty tuples": (pickled(b")" * (7 * MIB)), "pickle is damaged"),
    "pickle: tuples nested 2 million deep": (pickled(b")" + b"\x85" * 2_000_000), "pickle is damaged"),
    "pickle: a million steps": (pickled(b"}" + b"q\x00" * 1_000_000), "pickle is damaged"),
    "zip: directory of 20 MB": (
        lambda folder: (config(folder, {}), (folder / "pytorch_model.bin").write_bytes(zip_of(300_000)))[0], "its directory has"),
    "patterns: backtracking": (
        adapter("model." + "a" * 60, rank_pattern={"(a|a?)+(a|aa)+c(?=x)": 2}), "take more than"),
    "patterns: nested groups": (adapter(rank_pattern={"(" * 20 + "a" + ")+" * 20: 2}), "nests more than"),
    "patterns: 100,000 expressions": (
        adapter(rank_pattern={rf"layers\.{number}\..*": 2 for number in range(100_000)}), "take more than"),
    "config.json: 60 MiB of small objects": (file_of("config.json", lambda: small_objects(60 * MIB)), "at most"),
    "config.json: 31 MiB of small objects": (file_of("config.json", lambda: small_objects(31 * MIB)), "more than"),
    "config.json: a million levels": (file_of("config.json", lambda: b'{"a":' * 600_000), "nested more than"),
    "config.json: 30 MiB of strings with commas": (
        file_of("config.json", lambda: b'{"a":[' + b'",",' * (7 * MIB) + b'""]}'), "more than"),
    "manifest: 60 MiB of small objects": (file_of("manifest.json", lambda: small_objects(60 * MIB)), "at most"),
    "manifest: 31 MiB of small objects": (file_of("manifest.json", lambda: small_objects(31 * MIB)), "more than"),
    "safetensors: header of 95 MB": (weights(b'{"__metadata__":{"a":"' + b"x" * 95_000_000 + b'"}}'), "at most"),
    "safetensors: one million empty tensors": (weights(empty_tensors(1_000_000)), "at most"),
    "safetensors: 500,000 empty tensors": (weights(empty_tensors(500_000)), "more than"),
    "GGUF: 33 million empty strings": (gguf_array(8, 33_000_000, 8), "are left"),
    "GGUF: 20 million nested arrays": (gguf_array(9, 20_000_000, 12), "are left"),
    "tokenizer.model: 64 MiB": (file_of("tokenizer.model", lambda: bytes(64 * MIB)), "at most 33554432"),
    "tokenizer.model: 32 MiB of fields": (file_of("tokenizer.model", lambda: b"\x08\x00" * (16 * MIB)), "fields"),
    "tokenizer.model: 32 MiB of ranks": (file_of("tokenizer.model", lambda: b"AA== 0\n" + b"\n" * (31 * MIB)), "lines"),
    "tokenizer.json: 60 MiB of small objects": (file_of("tokenizer.json", lambda: small_objects(60 * MIB)), "more than"),
    "tokenizer.json: a million members": (
        file_of("tokenizer.json", lambda: b"{" + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}"), "more than 1000"),
    "pipe: model.gguf": (pipe("model.gguf"), "a regular file is needed"),
    "pipe: consolidated.00.pth": (pipe("consolidated.00.pth", "params.json"), "a regular file is needed"),
    "pipe: tokenizer.model": (pipe("a.model"), "a regular file is needed"),
}  # fmt: skip
"""Maker of a folder and a phrase of the problem that its summary must have."""


def zip_of(members: int) -> bytes:
    """Returns an archive whose directory lists this number of empty members."""
    entry = (
        struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0)
        + b"a" * 20
    )
    directory = entry * members
    return directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(directory), 0, 0)


def many_pickled_tensors(count: int) -> bytes:
    """Returns an archive of tensors that share a storage."""
    items = b"".join(
        b"X\x06\x00\x00\x00%06d" % number + tensor("0", (3, 5)) + b"s" for number in range(count)
    )
    return torch_archive({"data.pkl": HEAD + EMPTY_MAPPING + items + b".", "data/0": bytes(30)})


def table(tokens: int) -> bytes:
    """Returns a byte-level `tokenizer.json` with a merge for each token, in the form of pairs."""
    vocab = {f"t{number}": number for number in range(tokens)}
    merges = [["t", str(number)] for number in range(tokens)]
    return json.dumps(
        {"added_tokens": [], "model": {"type": "BPE", "vocab": vocab, "merges": merges}}
    ).encode()


def token_table(tokens: int) -> Callable[[Path], None]:
    """Returns a maker of a GGUF file with tokens, scores, types and as many merges, and no tensors."""

    def make(folder: Path) -> None:
        texts = b"".join(struct.pack("<Q7s", 7, b"t%06d" % number) for number in range(tokens))
        entries = [
            (b"tokenizer.ggml.tokens", 8, texts), (b"tokenizer.ggml.merges", 8, texts),
            (b"tokenizer.ggml.scores", 6, bytes(4 * tokens)), (b"tokenizer.ggml.token_type", 5, bytes(4 * tokens)),
        ]  # fmt: skip
        body = [
            struct.pack(f"<Q{len(key)}sIIQ", len(key), key, 9, kind, tokens) + values
            for key, kind, values in entries
        ]
        (folder / "model.gguf").write_bytes(
            b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(body) + bytes(32)
        )

    return make


LARGE: dict[str, tuple[str, Callable[[Path], None], Any]] = {
    "safetensors: 100,000 tensors": (
        "safetensors", file_of("a.safetensors", lambda: safetensors(empty_tensors(100_000))), 100_000),
    "pickle: 100,000 tensors": ("torch", file_of("a.bin", lambda: many_pickled_tensors(100_000)), 100_000),
    "manifest of 32 MiB": ("manifest", file_of("manifest.json", lambda: manifest(188_000)), 188_000),
    "SentencePiece: 300,000 tokens": (
        "summary", file_of("tokenizer.model", lambda: sentencepiece_file([f"piece{number}" for number in range(300_000)])), 300_000),
    "tiktoken: 300,000 tokens": ("summary", file_of("tokenizer.model", lambda: tiktoken_file(300_000)), 300_256),
    "tokenizer.json: 300,000 tokens": ("summary", file_of("tokenizer.json", lambda: table(300_000)), 300_000),
    "GGUF: 300,000 tokens": ("summary", token_table(300_000), 300_000),
    "patterns: 100,000 names": ("summary", adapter(
        rank_pattern={f"model.layers.{number}.self_attn.q_proj": 2 for number in range(100_000)}), None),
}  # fmt: skip
"""Reader, maker and answer of what no limit may refuse."""
