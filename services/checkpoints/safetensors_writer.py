"""Safetensors files written tensor by tensor, in any order: each header first, with the final names.

All shapes and dtypes are known before the first byte, so every tensor has its place in its file from the start: several
threads write at once and nothing is held back. Sharding follows huggingface_hub (a shard is closed when the next tensor would
exceed the limit; a single tensor may be larger).
"""

import json
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from services.checkpoints.journal import Journal
from services.checkpoints.tensor_writer import Place, PositionedWriter, write_at
from services.checkpoints.write_ledger import TensorPlan

INDEX_NAME = "model.safetensors.index.json"


def split_shards(plans: Sequence[TensorPlan], max_shard_bytes: int) -> list[list[TensorPlan]]:
    """Returns the tensors of each shard, in order."""
    shards: list[list[TensorPlan]] = [[]]
    filled = 0
    for plan in plans:
        if shards[-1] and filled + plan.size_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(plan)
        filled += plan.size_bytes
    return shards


class SafetensorsWriter(PositionedWriter):
    """Writer of a model's shards and their index into a folder; `stem` begins the names of the files."""

    def __init__(
        self,
        folder: Path,
        plans: Sequence[TensorPlan],
        max_shard_bytes: int,
        journal: Journal | None = None,
        *,
        stem: str = "model",
    ) -> None:
        super().__init__(folder, plans, journal)
        shards = split_shards(plans, max_shard_bytes)
        self._shards = {
            _shard_name(stem, number, len(shards)): shard for number, shard in enumerate(shards, 1)
        }

    def _open(self, files: ExitStack) -> None:
        for name, shard in self._shards.items():
            self._open_shard(self._target / name, shard, files)
        if len(self._shards) > 1:
            self._write_index()

    def _open_shard(self, path: Path, shard: list[TensorPlan], files: ExitStack) -> None:
        header, data_bytes = _header(shard)
        descriptor = self._open_file(path, files)
        os.posix_fallocate(descriptor, 0, len(header) + data_bytes)
        write_at(descriptor, memoryview(header), 0)
        offset = len(header)
        for plan in shard:
            self._places[plan.name] = Place(descriptor, offset, plan.size_bytes)
            offset += plan.size_bytes

    def _write_index(self) -> None:
        weight_map = {plan.name: name for name, shard in self._shards.items() for plan in shard}
        index = {"metadata": {"total_size": self.size_bytes}, "weight_map": weight_map}
        (self._target / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _shard_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def _header(shard: list[TensorPlan]) -> tuple[bytes, int]:
    """Returns a shard's header and the bytes of its tensors."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in shard:
        end = offset + plan.size_bytes
        entries[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors start aligned, as the format's own library does
    return struct.pack("<Q", len(text)) + text, offset
