"""What a job would do, and the shelf's models as the parts of a request."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.adapters.adapter import Adapter, read_adapter
from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.errors import (
    WrongModelKind,
)
from services.jobs.disk_reservations import DiskNeed
from services.kinds.shared import JobRequest
from services.models.store import ModelStore
from services.models.summary import kind_of_folder

PROCESS_BYTES = 350 * 2**20
"""What a worker process with torch takes before its first tensor."""


class Plan(BaseModel):
    """What a job would do; sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    kind: str
    reads: list[dict[str, Any]] = []
    writes: dict[str, Any] | None = None
    output_bytes: int = 0
    peak_memory_bytes: int = 0
    disk_needed_bytes: int = 0
    disk_free_bytes: int = 0
    disk_reserved_bytes: int = Field(
        default=0, description="Of the free bytes, what other jobs will still take."
    )
    warnings: list[str] = []

    def room(self, taken: Callable[[str], int]) -> DiskNeed:
        """What the job needs of the volume; `taken` gives the bytes that a job has written there."""
        return DiskNeed(self.disk_needed_bytes, self.disk_free_bytes, taken)


def later(request: JobRequest, waiting: list[str]) -> Plan:
    return Plan(
        kind=request.kind,
        writes={"name": request.makes},
        warnings=[f"{name} is not there yet: it is checked when the job starts" for name in waiting],
    )


def base_model(store: ModelStore, name: str, *, instruct: bool = False) -> Checkpoint:
    folder = store.path(name)
    kind = kind_of_folder(folder)
    if kind not in ("original", "huggingface"):
        raise WrongModelKind(
            f"{name!r} is of kind {kind!r}, needed is a base model (original or huggingface)",
            "Adapters go into the list of adapters of a merge; a base model comes first."
            if kind == "adapter"
            else "",
        )
    return read_checkpoint(folder, instruct=instruct)


def adapter_named(store: ModelStore, name: str) -> Adapter:
    folder = store.path(name)
    kind = kind_of_folder(folder)
    if kind != "adapter":
        raise WrongModelKind(
            f"{name!r} is of kind {kind!r}, needed is an adapter", "Name an adapter, or use it as base."
        )
    return read_adapter(folder, name)


def reading(name: str, role: str, size_bytes: int) -> dict[str, Any]:
    return {"name": name, "role": role, "size_bytes": size_bytes}
