"""GGUF files of adapters: what llama.cpp applies to a GGUF model, checked before it reads the file.

Form: ggml-org/llama.cpp `src/llama-adapter.cpp`, llama_adapter_lora_init_impl.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.errors import AdapterMismatch, UnsupportedAdapter
from services.files.gguf_files import GgufModel, read_gguf_model
from services.files.gguf_header import GgufHeader, GgufTensor, read_gguf_header

HALVES = (".lora_a", ".lora_b")
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class GgufAdapterFile:
    """A checked file, and its size in bytes."""

    path: Path
    size_bytes: int


def is_gguf_adapter(folder: Path) -> bool:
    """Returns True if a folder holds one GGUF file that says that it is an adapter. Raises UnreadableFile, UnsupportedFormat."""
    paths = [*folder.glob("*.gguf")]
    return len(paths) == 1 and read_gguf_header(paths[0]).metadata.get("general.type") == "adapter"


def check_gguf_adapter(folder: Path, base: Path) -> GgufAdapterFile:
    """Returns the adapter of a folder, checked against the GGUF model in the folder `base`.

    Raises:
        UnsupportedAdapter: it is not a LoRA, or has tensors that llama.cpp does not apply.
        AdapterMismatch: it is of another architecture, or its tensors do not fit those of the base.
        UnreadableFile, UnsupportedFormat: a header cannot be read.
    """
    paths = [*folder.glob("*.gguf")]
    if len(paths) != 1:
        raise UnsupportedAdapter(f"{folder.name} holds {len(paths)} GGUF files; an adapter is one.")
    header, model = read_gguf_header(paths[0]), read_gguf_model(base)
    _check_form(folder.name, header)
    if header.architecture != model.architecture:
        raise AdapterMismatch(
            f"The adapter {folder.name} is for {header.architecture!r}, and {base.name} is of {model.architecture!r}.",
            "Choose an adapter of this base.",
        )
    for name in _changed(folder.name, header.tensors):
        _check_pair(folder.name, name, header.tensors, model)
    return GgufAdapterFile(paths[0], paths[0].stat().st_size)


def _check_form(name: str, header: GgufHeader) -> None:
    kinds = header.metadata.get("general.type"), header.metadata.get("adapter.type")
    if kinds != ("adapter", "lora"):
        raise UnsupportedAdapter(
            f"{name} says general.type {kinds[0]!r} and adapter.type {kinds[1]!r}; a LoRA says 'adapter' and 'lora'.",
            "Convert an adapter to GGUF with output_format gguf and its base.",
        )
    alpha = header.metadata.get("adapter.lora.alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UnsupportedAdapter(f"{name} says adapter.lora.alpha = {alpha!r}; a number is needed.")


def _changed(name: str, tensors: Mapping[str, GgufTensor]) -> list[str]:
    """Returns the names of the base's tensors that have both halves."""
    stems = {tensor.removesuffix(half) for tensor in tensors for half in HALVES if tensor.endswith(half)}
    wanted = {stem + half for stem in stems for half in HALVES}
    odd = sorted(wanted ^ set(tensors))
    if odd or not stems:
        raise UnsupportedAdapter(
            f"{name} has {len(tensors)} tensors, which are not all pairs of .lora_a and .lora_b"
            + (f": {odd[0]!r} is missing or left over." if odd else "."),
            "Convert the adapter to GGUF again.",
        )
    return sorted(stems)


def _check_pair(name: str, stem: str, tensors: Mapping[str, GgufTensor], model: GgufModel) -> None:
    a, b = (tensors[stem + half].shape for half in HALVES)
    target = model.tensors.get(stem)
    if target is None or stem == EMBEDDING:
        raise AdapterMismatch(
            f"The adapter {name} changes {stem!r}, which is not a linear layer of {model.name}.",
            "Choose an adapter of this base.",
        )
    rank = a[0]
    if (a, b) != ((rank, target.shape[-1]), (target.shape[0], rank)) or len(target.shape) != 2:
        raise AdapterMismatch(
            f"The adapter {name} has halves {list(a)} and {list(b)} for {stem!r}, which is {list(target.shape)}.",
            "Choose an adapter of this base.",
        )
