"""Plan of a job, and the models of a request with which it is made."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from services.adapters.adapter import Adapter, read_adapter
from services.adapters.stack import Stack, check_scales, check_stack
from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.backend import ServedModel
from services.errors import InternalError, WrongModelKind
from services.generate_engines import ALL_ENGINES, Engine, Engines
from services.jobs.disk_reservations import DiskNeed, DiskUse
from services.kinds import JobRequest
from services.kinds.model_summary import ModelKind
from services.kinds.shared import AdapterChoice
from services.models.hub import NO_HUB, Hub
from services.models.store import ModelStore
from services.models.summary import kind_of_folder
from services.names import is_model_name
from services.validation import is_none

PROCESS_BYTES = 350 * 2**20
"""Memory of a worker process with torch before its first tensor."""

DISK_MARGIN_BYTES = 64 * 2**20
"""Kept free in addition to a job's output: headers, manifest, the server's own log."""

DIGEST_LIMIT_BYTES = 64 * 2**20
"""Weight files up to this size are digested at submission; larger ones when the job starts."""


class PlannedRead(BaseModel):
    """A model (`name`, `role`) or a file (`path`) that a job reads; `backend` is the address of the server that has it.

    A `linked` file takes no new space. A file of the Hub has the repository's id as its `name`, and the `commit`.
    """

    model_config = ConfigDict(frozen=True)

    name: str | None = Field(default=None, exclude_if=is_none)
    role: str | None = Field(default=None, exclude_if=is_none)
    path: str | None = Field(default=None, exclude_if=is_none)
    commit: str | None = Field(default=None, exclude_if=is_none)
    size_bytes: int | None = Field(default=None, exclude_if=is_none)
    backend: str | None = Field(default=None, exclude_if=is_none)
    linked: bool = Field(default=False, exclude=True)

    @classmethod
    def of_adapter(cls, adapter: Adapter) -> Self:
        """Returns the entry of an adapter, whose weight file is read."""
        return cls(name=adapter.name, role="adapter", size_bytes=adapter.weights.stat().st_size)


class PlannedWrite(BaseModel):
    """The model that a job makes; the other fields as far as its kind has them."""

    model_config = ConfigDict(frozen=True)

    name: str | None
    output_format: str | None = Field(default=None, exclude_if=is_none)
    tensors: int | None = Field(default=None, exclude_if=is_none)
    ranks: int | None = Field(default=None, exclude_if=is_none)
    files: int | None = Field(default=None, exclude_if=is_none)
    vocabulary_size: int | None = Field(default=None, exclude_if=is_none)
    added: int | None = Field(default=None, exclude_if=is_none)
    tokenizer_of: str | None = Field(default=None, exclude_if=is_none)


class Plan(BaseModel):
    """Inputs, output, memory, disk space and warnings of a job; sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    kind: str
    reads: list[PlannedRead] = []
    writes: PlannedWrite | None = None
    output_bytes: int = 0
    peak_memory_bytes: int = 0
    linked_bytes: int = Field(default=0, exclude=True)  # part of the output that takes no new space
    disk_needed_bytes: int = 0
    disk_free_bytes: int = 0
    disk_reserved_bytes: int = Field(
        default=0, description="Part of the free bytes that other jobs will still take."
    )
    estimated_seconds: float | None = Field(
        default=None,
        description="Of a dry run: the time that it would take, from ended jobs of its kind with outputs of a similar size.",
    )
    engine: Engine | None = Field(
        default=None, exclude_if=is_none, description="The engine of a job that runs a model."
    )
    kv_cache_bytes: int | None = Field(
        default=None,
        exclude_if=is_none,
        description="Part of the peak memory of a generate job: keys and values of one output with all its new tokens, in float32; "
        "of the prompt only tokens that are given as ids.",
    )
    warnings: list[str] = []
    _disk_need: DiskNeed | None = PrivateAttr(default=None)

    @property
    def disk_need(self) -> DiskNeed:
        """The bytes to reserve for the job.

        Raises:
            InternalError: the plan was not returned by `preflight`.
        """
        if self._disk_need is None:
            raise InternalError("A plan was used before its disk need was known.")
        return self._disk_need

    def with_disk(self, store: ModelStore, use: DiskUse) -> "Plan":
        """Returns the plan with what it needs of the volume.

        Raises:
            DiskFull: less is free.
        """
        needed = self.output_bytes - self.linked_bytes + DISK_MARGIN_BYTES if self.output_bytes else 0
        need = DiskNeed(needed, store.free_bytes() + use.staged_bytes, store.staging.bytes_of)
        need.check(use.reserved_bytes)
        plan = self.model_copy(
            update={
                "disk_needed_bytes": needed, "disk_free_bytes": need.free_bytes,
                "disk_reserved_bytes": use.reserved_bytes,
            }
        )  # fmt: skip
        plan._disk_need = need
        return plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of one preflight, in bytes.

    `digest_bytes`: weight files up to this size are digested, by which published adapters are recognized.
    `unpack_bytes`: an archive may unpack to this size (`GRAFTWERK_UNPACK_LIMIT_BYTES`).
    """

    digest_bytes: int = DIGEST_LIMIT_BYTES
    unpack_bytes: int = 0


BASE_KINDS: Sequence[ModelKind] = ("original", "huggingface")
"""Kinds of models that adapters are merged into."""


def convert_first(name: str) -> str:
    """Returns the hint for a model that is of use once it is converted."""
    return f"Convert it first: graftwerk convert {name} {name}-hf"


NO_ARCHIVES = Limits()
"""Limits for requests that are not imports: an archive is refused until the entry point passes its settings."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Other processes that matter to a preflight.

    `served` is the model of another server that runs a generate job, if one does. `hub` is the Hub of imports, `engines` are
    those of the workers.
    """

    served: ServedModel | None = None
    hub: Hub = NO_HUB
    engines: Engines = ALL_ENGINES


NO_SERVERS = Servers()
"""For requests that no other server takes part in."""


class Inputs:
    """The models that a request names, each resolved to its folder once, and the limits that apply.

    `waiting` are the names of models that earlier jobs will make; they have no folder yet. `served`, `hub` and `engines`
    are those of `Servers`.
    """

    def __init__(
        self,
        request: JobRequest,
        store: ModelStore,
        promised: Collection[str],
        limits: Limits,
        servers: Servers,
    ) -> None:
        self.store = store
        self.limits = limits
        self.served = servers.served
        self.hub = servers.hub
        self.engines = servers.engines
        self.waiting = [name for name in request.reads if name in promised]
        self._names = [name for name in request.reads if name not in promised]

    @cached_property
    def folders(self) -> Mapping[str, Path]:
        """Folders by name.

        Raises:
            ModelNotFound: a model is not on the volume.
        """
        return {name: self._resolved(name) for name in self._names}

    def _resolved(self, name: str) -> Path:
        if not is_model_name(name):  # a name of another server's model, which does not serve it
            raise self.store.not_found(name)
        return self.store.path(name)

    def base(self, name: str, *, dequantized: bool = False) -> Checkpoint:
        """Returns the checkpoint of a base model, from its headers; see `read_checkpoint`.

        Raises:
            WrongModelKind: it is not an original or a Hugging Face model.
        """
        return read_checkpoint(self._of_kind(name, BASE_KINDS), dequantized=dequantized)

    def source(self, name: str, *, instruct: bool = False) -> Checkpoint:
        """Returns the checkpoint of a model that is converted: a base model, or a GGUF file's.

        Raises:
            WrongModelKind: it is not a checkpoint.
        """
        return read_checkpoint(self._of_kind(name, (*BASE_KINDS, "gguf")), instruct=instruct)

    def _of_kind(self, name: str, kinds: Sequence[ModelKind]) -> Path:
        folder = self.folders[name]
        kind = kind_of_folder(folder)
        if kind not in kinds:
            hint = "Name adapters in the list of adapters of a merge, and a base model as its base."
            raise WrongModelKind(
                f"{name!r} is of kind {kind!r}; a base model (original or huggingface) is needed.",
                convert_first(name) if kind == "gguf" else hint if kind == "adapter" else "",
            )
        return folder

    def adapter(self, name: str, *, experts: bool = False) -> Adapter:
        """Returns an adapter, from its headers; see `read_adapter`.

        Raises:
            WrongModelKind: it is not an adapter.
        """
        folder = self.folders[name]
        kind = kind_of_folder(folder)
        if kind != "adapter":
            raise WrongModelKind(
                f"{name!r} is of kind {kind!r}; an adapter is needed.", "Name an adapter, or use it as base."
            )
        return read_adapter(folder, name, experts=experts)

    def stack(self, base: Checkpoint, choices: Sequence[AdapterChoice]) -> tuple[list[Adapter], Stack]:
        """Returns the adapters and how they fit on the base and on each other.

        Raises:
            WrongModelKind: one of them is not an adapter.
            AdapterMismatch, VocabularyMismatch, WrongAdapterOrder, UnsupportedAdapter: they do not fit.
        """
        adapters = [self.adapter(choice.name, experts=True) for choice in choices]
        stack = check_stack(base, adapters)
        check_scales([(a, choice.scale) for a, choice in zip(adapters, choices, strict=True)])
        return list(stack.adapters), stack


def deferred_plan(request: JobRequest, inputs: Inputs) -> Plan:
    """Returns the plan of a job whose inputs earlier jobs will make: it is checked when the job starts.

    Raises:
        ModelNotFound: one of the other models is not on the volume.
    """
    assert inputs.folders.keys().isdisjoint(inputs.waiting)
    return Plan(
        kind=request.kind,
        writes=PlannedWrite(name=request.makes),
        warnings=[
            f"{name} does not exist yet. It is checked when the job starts." for name in inputs.waiting
        ],
    )
