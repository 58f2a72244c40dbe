"""Description of a written model of any format, under Hugging Face's names and in its order of rows."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from services.adapters.adapter import is_adapter, read_adapter
from services.architectures.checkpoint import TensorSource
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.output_spec import OutputFormat, OutputSpec
from services.checkpoints.blocks import tensor_bytes
from services.checkpoints.gguf_decoding import decode
from services.checkpoints.gguf_metadata import IMATRIX_ENTRIES
from services.checkpoints.gguf_plans import MODEL_FILE, gguf_plans, interleaved_heads, offset_of
from services.checkpoints.rotary import interleaved_to_halves
from services.checkpoints.tensor_reader import TensorReader
from services.files.gguf_header import GgufHeader, read_gguf_header
from services.files.tensors import BLOCKS


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a written model: `key` is its name in the digests, `source` the position of its bytes.

    `dtype` is a safetensors code; for a block encoding that of the encoded values. `blocks` is the encoding's name, `offset` a
    number that was added to its values. `weighed`: an importance matrix decided which values are encoded well.
    """

    name: str
    key: str
    dtype: str
    source: TensorSource
    blocks: str | None = None
    offset: float = 0.0
    weighed: bool = False

    @property
    def by_blocks(self) -> bool:
        """True for a block encoding."""
        return self.blocks is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in elements."""
        return self.source.shape

    @property
    def encoding(self) -> str:
        """Name of the block encoding, or the dtype."""
        return self.blocks or self.dtype

    def digest(self, reader: TensorReader) -> str:
        """Returns the SHA-256 of the bytes whose digest was recorded on writing: for GGUF those in the file."""
        found = reader.view(self.source.parts[0]) if self.key != self.name else reader.joined(self.source)
        return hashlib.sha256(tensor_bytes(found)).hexdigest()

    def rows(self, reader: TensorReader, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns some rows and a bound on the encoding's error of each value, both float64.

        Args:
            rows: Indices, int64 of shape (rows,).

        Returns:
            Values of shape (rows, columns), and the bounds of the same shape, or one of shape (1,), zero if it is exact.
        """
        if self.blocks is None:
            values = reader.joined(self.source)[rows].double()
            slack = torch.full((1,), abs(self.offset) * 2.0**-23, dtype=torch.float64)
            return values - self.offset, slack
        if self.source.rotary_heads:
            rows = interleaved_to_halves(torch.arange(self.shape[0]), self.source.rotary_heads)[rows]
        return decode(reader.view(self.source.parts[0])[rows], self.blocks)


def tensors_of(folder: Path) -> dict[str, StoredTensor]:
    """Returns every tensor of a model or adapter of any format under its name in the manifest, which is that of its file.

    Errors of `read_checkpoint`, `read_adapter` and `read_gguf_header` are raised as they are.
    """
    path = folder / MODEL_FILE
    if is_adapter(folder):
        headers = read_adapter(folder, experts=True).headers
        sources = {raw.name: TensorSource(raw.name, raw.dtype, raw.shape, (raw,), None, 0) for raw in headers}
        return {name: StoredTensor(name, name, source.dtype, source) for name, source in sources.items()}
    if not path.is_file():
        found = read_checkpoint(folder).tensors
        return {name: StoredTensor(name, name, source.dtype, source) for name, source in found.items()}
    header = read_gguf_header(path)
    sources = {
        key: TensorSource(key, raw.dtype, raw.shape, (raw,), None, 0)
        for key, raw in ((key, header.raw(key)) for key in header.tensors)
    }
    return {key: StoredTensor(key, key, source.dtype, source) for key, source in sources.items()}


@dataclass(frozen=True, slots=True)
class StoredModel:
    """All tensors of a written model, and every key that its headers list."""

    tensors: Mapping[str, StoredTensor]
    keys: frozenset[str]
    size_bytes: int
    vocabulary_size: int
    tokenizer_size: int | None


def read_stored(folder: Path, output: OutputSpec) -> StoredModel:
    """Returns the description of a written model from its headers alone.

    Errors of `read_checkpoint` and `read_gguf_header` are raised as they are.
    """
    return READERS[output.format](folder, output)


def _read_checkpoint(folder: Path, output: OutputSpec) -> StoredModel:
    found = read_checkpoint(folder)
    tensors = {name: StoredTensor(name, name, source.dtype, source) for name, source in found.tensors.items()}
    tokens = found.vocabulary.size if found.vocabulary else None
    return StoredModel(tensors, frozenset(tensors), found.size_bytes, found.config.vocab_size, tokens)


def _read_gguf(folder: Path, output: OutputSpec) -> StoredModel:
    header = read_gguf_header(folder / MODEL_FILE)
    tensors = {
        name: _stored(header, output, name, plan.name)
        for name, plan in gguf_plans(output).items()
        if plan.name in header.tensors
    }
    size = sum(tensor.size_bytes for tensor in header.tensors.values())
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    rows = header.of_architecture("vocab_size")
    return StoredModel(tensors, frozenset(header.tensors), size, rows, getattr(tokens, "length", None))


def _stored(header: GgufHeader, output: OutputSpec, name: str, key: str) -> StoredTensor:
    raw, found = header.raw(key), header.tensors[key]
    source = TensorSource(name, raw.dtype, found.shape, (raw,), None, interleaved_heads(output, name))
    blocks = found.encoding if found.encoding in BLOCKS else None
    dtype = output.tensors[name][0] if blocks else raw.dtype
    weighed = blocks is not None and IMATRIX_ENTRIES in header.metadata
    return StoredTensor(name, key, dtype, source, blocks, offset_of(output, name), weighed)


READERS: Mapping[OutputFormat, Callable[[Path, OutputSpec], StoredModel]] = {
    "huggingface": _read_checkpoint,
    "meta": _read_checkpoint,
    "gguf": _read_gguf,
}
