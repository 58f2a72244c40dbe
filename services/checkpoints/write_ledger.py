"""Ledger of a writer: the planned tensors, which of them are written, and the digest of each."""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.checkpoints.journal import Journal
from services.errors import InternalError
from services.files.tensors import size_of


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor to be written: safetensors' dtype code (or a block encoding of GGUF) and shape in elements."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return size_of(self.dtype, math.prod(self.shape))


class WriteLedger:
    """Planned tensors, each claimed once, and the digests of those written. Safe to use from several threads.

    `reused` names the tensors that a killed run had written.
    """

    def __init__(self, plans: Sequence[TensorPlan], journal: Journal | None = None) -> None:
        self._plans = {plan.name: plan for plan in plans}
        self._journal = journal or Journal()
        self._claimed: set[str] = set()
        self._digests: dict[str, str] = {}
        self._lock = threading.Lock()
        self.reused: set[str] = set()

    @property
    def size_bytes(self) -> int:
        """Bytes of all planned tensors."""
        return sum(plan.size_bytes for plan in self._plans.values())

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each written tensor's bytes, in the order of the plan."""
        return {name: self._digests[name] for name in self._plans if name in self._digests}

    def claim(self, name: str) -> TensorPlan:
        """Returns the plan of a tensor whose writing begins.

        Raises:
            InternalError: It was not planned, or its writing has begun before.
        """
        with self._lock:
            if name not in self._plans or name in self._claimed:
                raise InternalError(f"The tensor {name!r} was not planned, or was written before.")
            self._claimed.add(name)
            return self._plans[name]

    def record(self, name: str, sha256: str, **more: Any) -> None:
        """Records a tensor as written, with the digest of its bytes and anything else that its writer needs to find it again."""
        self._digests[name] = sha256
        with self._lock:
            self._journal.record(name, sha256=sha256, **more)

    def entry(self, name: str) -> Mapping[str, Any] | None:
        """Returns the record of a tensor by a killed run: `sha256` and what its writer added. None if there is none."""
        return self._journal.entries.get(name)

    def reuse(self, name: str) -> None:
        """Records a tensor as written by a killed run, once its bytes have been checked."""
        self.claim(name)
        self._digests[name] = self._journal.entries[name]["sha256"]
        self.reused.add(name)

    def forget(self, names: Sequence[str]) -> None:
        """Removes records of a killed run."""
        with self._lock:
            self._journal.forget(names)

    def check_complete(self) -> None:
        """Checks that every planned tensor was written.

        Raises:
            InternalError: At least one was not; the first is named.
        """
        missing = [name for name in self._plans if name not in self._digests]
        if missing:
            raise InternalError(
                f"{len(missing)} planned tensors were not written; the first is {missing[0]!r}."
            )
