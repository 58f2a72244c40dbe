"""What a writer of any format keeps book of: planned tensors, each written once, and the digest of each."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.checkpoints.journal import Journal
from services.errors import InternalError
from services.files.tensors import TensorHeader


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to be written: safetensors' dtype code (or a block encoding of GGUF) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes."""
        return TensorHeader(self.name, self.dtype, self.shape, Path(), 0).size_bytes


class Ledger:
    """Which planned tensors are claimed, and the digests of those written; safe from several threads.

    `kept` are those that an earlier try had written.
    """

    def __init__(self, plans: Sequence[TensorPlan], journal: Journal | None = None) -> None:
        self._plans = {plan.name: plan for plan in plans}
        self._journal = journal or Journal()
        self._claimed: set[str] = set()
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()
        self.kept: set[str] = set()

    @property
    def size_bytes(self) -> int:
        """Bytes of all planned tensors."""
        return sum(plan.size_bytes for plan in self._plans.values())

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each written tensor's bytes, in the order of the plan."""
        return {name: self._digests[name] for name in self._plans if name in self._digests}

    def claim(self, name: str) -> TensorPlan:
        """The plan of a tensor that is now written.

        Raises:
            InternalError: it was not planned, or written before.
        """
        with self._lock:
            if name not in self._plans or name in self._claimed:
                raise InternalError(f"{name!r} was not planned, or written before")
            self._claimed.add(name)
            return self._plans[name]

    def record(self, name: str, sha256: str, **more: Any) -> None:
        """Enters a tensor as written, with the digest of its bytes and what else its writer needs to find it again."""
        self._digests[name] = sha256
        with self._lock:
            self._journal.record(name, sha256=sha256, **more)

    def entry(self, name: str) -> Mapping[str, Any] | None:
        """What an earlier try has recorded of a tensor: `sha256` and what came with it."""
        return self._journal.entries.get(name)

    def keep(self, name: str) -> None:
        """Enters a tensor as written by an earlier try, once its bytes have been checked."""
        self.claim(name)
        self._digests[name] = self._journal.entries[name]["sha256"]
        self.kept.add(name)

    def forget(self, names: Sequence[str]) -> None:
        """Takes back entries of an earlier try."""
        with self._lock:
            self._journal.forget(names)

    def check_complete(self) -> None:
        """Every planned tensor was written.

        Raises:
            InternalError: the first that was not is named.
        """
        missing = [name for name in self._plans if name not in self._digests]
        if missing:
            raise InternalError(
                f"{len(missing)} planned tensors were not written, the first is {missing[0]!r}"
            )
