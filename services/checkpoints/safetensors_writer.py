"""Safetensors files written tensor by tensor, in any order: each header first, with the final names.

All shapes and dtypes are known before the first byte, so every tensor has its place in its file from the start: several
threads write at once and nothing is held back. Sharding follows huggingface_hub (a shard is closed when the next tensor would
exceed the limit; a single tensor may be larger).
"""

import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from services.checkpoints.blocks import checked_blocks, digested_blocks, tensor_bytes
from services.checkpoints.journal import Journal
from services.checkpoints.write_ledger import Ledger, TensorPlan
from services.errors import DiskFull

INDEX_NAME = "model.safetensors.index.json"
WRITE_BYTES = 16 * 2**20


def split_shards(plans: Sequence[TensorPlan], max_shard_bytes: int) -> list[list[TensorPlan]]:
    """The tensors of each shard, in order."""
    shards: list[list[TensorPlan]] = [[]]
    filled = 0
    for plan in plans:
        if shards[-1] and filled + plan.size_bytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(plan)
        filled += plan.size_bytes
    return shards


@dataclass(frozen=True, slots=True)
class _Place:
    descriptor: int
    offset: int
    size_bytes: int


class SafetensorsWriter:
    """Writes a model's tensors into `folder`; a context manager that ends complete or raises.

    Files of an earlier try are filled further where the journal knows of one.

    Raises:
        DiskFull: when the files are laid out, before any tensor is computed, or later if the room is taken.
        InternalError: on leaving, when a planned tensor was not written, or one was written twice or unplanned.
    """

    def __init__(
        self, folder: Path, plans: Sequence[TensorPlan], max_shard_bytes: int, journal: Journal | None = None
    ) -> None:
        self._folder = folder
        self._shards = split_shards(plans, max_shard_bytes)
        self._places: dict[str, _Place] = {}
        self._descriptors: list[int] = []
        self._ledger = Ledger(plans, journal)

    @property
    def size_bytes(self) -> int:
        """Bytes of all planned tensors."""
        return self._ledger.size_bytes

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each written tensor's bytes, in the order of the plan."""
        return self._ledger.digests

    @property
    def kept(self) -> set[str]:
        """The tensors that an earlier try had written."""
        return self._ledger.kept

    def __enter__(self) -> Self:
        count = len(self._shards)
        for number, shard in enumerate(self._shards, start=1):
            name = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            self._open(self._folder / name, shard)
        if count > 1:
            self._write_index()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        if kind is None:
            self._ledger.check_complete()

    def _open(self, path: Path, shard: list[TensorPlan]) -> None:
        header, data_bytes = _header(shard)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._descriptors.append(descriptor)
        os.fchmod(descriptor, 0o644)  # whatever the umask: other containers read it
        with disk_errors(path, len(header) + data_bytes):
            os.posix_fallocate(descriptor, 0, len(header) + data_bytes)
        write_at(descriptor, memoryview(header), 0)
        offset = len(header)
        for plan in shard:
            self._places[plan.name] = _Place(descriptor, offset, plan.size_bytes)
            offset += plan.size_bytes

    def _write_index(self) -> None:
        count = len(self._shards)
        weight_map = {
            plan.name: f"model-{number:05d}-of-{count:05d}.safetensors"
            for number, shard in enumerate(self._shards, start=1)
            for plan in shard
        }
        index = {"metadata": {"total_size": self.size_bytes}, "weight_map": weight_map}
        (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def keep(self, name: str) -> bool:
        """Whether an earlier try wrote this tensor: its bytes are read again and must have the digest noted then."""
        entry, place = self._ledger.entry(name), self._places[name]
        if entry is None or digest_at(place.descriptor, place.offset, place.size_bytes) != entry["sha256"]:
            return False
        self._ledger.keep(name)
        return True

    def write(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Writes one tensor to its place, given as blocks of rows in order, and records its digest; safe from several threads.

        Raises:
            InternalError: the blocks do not make the planned tensor, or it was written before.
        """
        plan = self._ledger.claim(name)
        place = self._places[name]
        digest, offset = hashlib.sha256(), place.offset
        with disk_errors(self._folder, plan.size_bytes):
            for block in digested_blocks(checked_blocks(plan, blocks), digest.update):
                data = tensor_bytes(block)
                write_at(place.descriptor, data, offset)
                offset += len(data)
        self._ledger.record(name, digest.hexdigest())


def _header(shard: list[TensorPlan]) -> tuple[bytes, int]:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for plan in shard:
        end = offset + plan.size_bytes
        entries[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors start aligned, as the format's own library does
    return struct.pack("<Q", len(text)) + text, offset


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of the bytes at an offset of an open file."""
    for start in range(0, len(data), WRITE_BYTES):
        chunk = data[start : start + WRITE_BYTES]
        while chunk:
            written = os.pwrite(descriptor, chunk, offset)
            offset += written
            chunk = chunk[written:]


def digest_at(descriptor: int, offset: int, size_bytes: int) -> str:
    """SHA-256 of some bytes of an open file."""
    digest, end = hashlib.sha256(), offset + size_bytes
    while chunk := os.pread(descriptor, min(WRITE_BYTES, end - offset), offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()


@contextmanager
def disk_errors(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turns "no space left" into DiskFull with the figures."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"the volume has no room for {needed_bytes} more bytes ({path.name})",
            "Delete models that are not needed, or enlarge the volume; nothing was left behind.",
        ) from error
