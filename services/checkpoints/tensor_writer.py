"""Parents of the writers of all formats: each planned tensor is written once, in any order, from several threads."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from services.checkpoints.blocks import checked_blocks, tensor_bytes
from services.checkpoints.journal import Journal
from services.checkpoints.write_ledger import TensorPlan, WriteLedger
from services.files.disk_full import disk_full_as_error

WRITE_BYTES = 16 * 2**20


class TensorWriter(ABC):
    """Context manager that opens the files of a model and, unless an exception passes, ends with all tensors written.

    A journal of a killed run makes its files and tensors reusable.

    Raises:
        DiskFull: On entering, before any tensor is computed, or later if the space is taken meanwhile.
        InternalError: On leaving, if a planned tensor was not written.
    """

    def __init__(self, target: Path, plans: Sequence[TensorPlan], journal: Journal | None = None) -> None:
        """`target` is the folder or file that is written."""
        self._target = target
        self._ledger = WriteLedger(plans, journal)
        self._files = ExitStack()

    @property
    def size_bytes(self) -> int:
        """Bytes of all planned tensors as they are computed."""
        return self._ledger.size_bytes

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each written tensor, by its planned name and in the order of the plan."""
        return self._ledger.digests

    @property
    def reused(self) -> set[str]:
        """Names of the tensors that a killed run had already written."""
        return self._ledger.reused

    def __enter__(self) -> Self:
        with ExitStack() as files, disk_full_as_error(self._target, self.size_bytes):
            self._open(files)
            self._files = files.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with disk_full_as_error(self._target, self.size_bytes):
            self._files.__exit__(kind, error, trace)
        if kind is None:
            self._ledger.check_complete()

    @abstractmethod
    def _open(self, files: ExitStack) -> None:
        """Opens the files and registers with `files` what closes them."""

    @abstractmethod
    def reuse(self, name: str) -> bool:
        """Returns True if a killed run has written this tensor and its bytes on the disk prove it."""

    @abstractmethod
    def write(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Writes one tensor, given as blocks of rows in order.

        Raises:
            InternalError: The blocks do not make the planned tensor, or it was written before or never planned.
        """


@dataclass(frozen=True, slots=True)
class Place:
    """Position of one tensor in an open file, in bytes."""

    descriptor: int
    offset: int
    size_bytes: int


class PositionedWriter(TensorWriter):
    """Writer whose tensors have a place in their file from the start, so that several threads write at once.

    Subclasses fill `_places` by the planned names when they open their files.
    """

    def __init__(self, target: Path, plans: Sequence[TensorPlan], journal: Journal | None = None) -> None:
        super().__init__(target, plans, journal)
        self._places: dict[str, Place] = {}

    @staticmethod
    def _open_file(path: Path, files: ExitStack) -> int:
        """Opens a file without truncating it; returns the descriptor, which `files` closes."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        files.callback(os.close, descriptor)
        os.fchmod(descriptor, 0o644)  # regardless of the umask: other containers read it
        return descriptor

    def reuse(self, name: str) -> bool:
        """Reads a tensor's bytes again and compares their digest with the one in the journal of a killed run."""
        entry, place = self._ledger.entry(name), self._places[name]
        if entry is None or digest_at(place) != entry["sha256"]:
            return False
        self._ledger.reuse(name)
        return True

    def write(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Writes one tensor to its place and records the digest of its bytes.

        Raises:
            InternalError: The blocks do not make the planned tensor, or it was written before or never planned.
        """
        plan, place = self._ledger.claim(name), self._places[name]
        digest, offset = hashlib.sha256(), place.offset
        with disk_full_as_error(self._target, place.size_bytes):
            for block in self._stored_blocks(plan, checked_blocks(plan, blocks)):
                data = tensor_bytes(block)
                digest.update(data)
                write_at(place.descriptor, data, offset)
                offset += len(data)
        self._ledger.record(name, digest.hexdigest())

    def _stored_blocks(self, plan: TensorPlan, blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Returns the blocks as they are stored: reordered and encoded where the format needs it."""
        return blocks


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of the bytes at an offset of an open file."""
    for start in range(0, len(data), WRITE_BYTES):
        chunk = data[start : start + WRITE_BYTES]
        while chunk:
            written = os.pwrite(descriptor, chunk, offset)
            offset += written
            chunk = chunk[written:]


def digest_at(place: Place) -> str:
    """Returns the SHA-256 of the bytes at a place."""
    digest, offset = hashlib.sha256(), place.offset
    end = offset + place.size_bytes
    while chunk := os.pread(place.descriptor, min(WRITE_BYTES, end - offset), offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()
