"""Cache of loaded models: each is loaded once and evicted when another one needs its memory."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from shutil import rmtree
from typing import Literal, Protocol

import torch

from services.checkpoints.write_hooks import WriteHooks
from services.errors import InternalError
from services.generate import (
    Engine,
    GenerationRequest,
    LoadedModel,
    ServedModel,
    load_model,
    resolve_device,
)
from services.generate.prefix_cache import PrefixCache
from services.generate.quantization import quantized_bytes
from services.generate_engines import Engine as EngineName
from services.kinds.shared import ModelChoice, Quantization
from services.merge import merge
from services.models.store import ModelStore
from worker.inference.model_engine import ModelEngine
from worker.lifecycle import JobContext

MEMORY_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")
"""cgroup v2: bytes, or "max"."""

PREFIX_SHARE = 8
"""Memory of loaded models, divided by that of cached beginnings of prompts, which comes in addition."""

Stamp = tuple[tuple[str, int, int], ...]
"""Name, size in bytes and modification time in ns of each file of a folder."""


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Identity of a loaded model: requests with equal keys share it. The files of the same folders, loaded the same way."""

    model: str
    stamp: Stamp
    adapters: tuple[tuple[str, float, Stamp], ...]
    quantization: Quantization | None
    rope_alpha: float | None
    engine: EngineName = field(default="graftwerk", repr=False)

    @property
    def name(self) -> str:
        """The model's name and those of its adapters, `base+adapter`."""
        return "+".join([self.model, *(name for name, _, _ in self.adapters)])


@dataclass(slots=True, eq=False)
class CachedModel:
    """A loaded model and its engine.

    `refcount` counts the jobs that run on it, `owners` has the execution's name for each request to the engine, and
    `last_use` orders the models by their last use, which ended at the time `idle_since`. `share_bytes` returns its share of a
    server's memory, if a server holds it. `is_unmerged`: its adapters are applied to the base while it runs.
    """

    key: ModelKey
    loaded: LoadedModel | ServedModel
    engine: ModelEngine
    owners: dict[str, str] = field(default_factory=dict)
    refcount: int = 0
    last_use: int = 0
    idle_since: float = 0.0
    share_bytes: Callable[[], int] | None = None
    is_unmerged: bool = False

    @property
    def adapters(self) -> Literal["merged", "unmerged"] | None:
        """Form of its adapters, None if it has none."""
        if not self.key.adapters:
            return None
        return "unmerged" if self.is_unmerged else "merged"

    @property
    def size_bytes(self) -> int:
        """Bytes of memory that it takes."""
        return self.loaded.size_bytes if self.share_bytes is None else self.share_bytes()

    @property
    def local(self) -> LoadedModel:
        """The model in this process. Raises InternalError if a server has it."""
        if not isinstance(self.loaded, LoadedModel):
            raise InternalError(f"{self.key.name} is not in this process.")
        return self.loaded

    def submit(self, request: GenerationRequest, *, owner: str) -> str:
        """Submits a request to the engine and returns its id; its events go to the execution of this name.

        Raises:
            GraftwerkError: see `Engine.submit`.
        """
        request_id = self.engine.submit(request)
        self.owners[request_id] = owner
        return request_id


class ModelLoader(Protocol):
    """Models that an engine outside of this process runs."""

    def needed_bytes(self, key: ModelKey, store: ModelStore) -> int:
        """Returns the bytes that `load` would need."""

    def load(self, key: ModelKey, context: JobContext) -> CachedModel:
        """Returns a model, whose engine may take requests later only."""


@dataclass(slots=True)
class ModelCache:
    """Loaded models of at most `limit_bytes` together (a single one may be larger). `slots` is per engine.

    All in this process share one cache of beginnings of prompts. `loaders` has the engines outside of it.
    """

    device: str
    limit_bytes: int
    slots: int
    loaders: Mapping[EngineName, ModelLoader] = field(default_factory=dict)
    models: list[CachedModel] = field(default_factory=list)
    clock: Iterator[int] = field(default_factory=count)
    prefixes: PrefixCache = field(init=False)

    def __post_init__(self) -> None:
        self.prefixes = PrefixCache(self.limit_bytes // PREFIX_SHARE)

    @property
    def busy(self) -> list[CachedModel]:
        """The models that jobs run on."""
        return [model for model in self.models if model.refcount]

    def acquire(self, key: ModelKey, context: JobContext) -> CachedModel | None:
        """Returns the model with this key, loaded if necessary; None while busy models leave no memory for it.

        Raises:
            ModelNotFound: a folder does not exist.
            GraftwerkError: see `load_model` and `merge`.
        """
        model = self._find(key)
        if model is None:
            if not self._make_room(self.needed_bytes(key, context.store)):
                return None
            model = self._load(key, context)
        model.refcount += 1
        model.last_use = next(self.clock)
        return model

    def needed_bytes(self, key: ModelKey, store: ModelStore) -> int:
        """Returns the bytes that `acquire` would need. Raises ModelNotFound."""
        if self._find(key) is not None:
            return 0
        if key.engine in self.loaders:
            return self.loaders[key.engine].needed_bytes(key, store)
        return _needed_bytes(key, store, self.device)

    def fits(self, key: ModelKey, needed_bytes: int) -> bool:
        """Returns True if `acquire` would return the model; a single one may be larger than the limit."""
        busy = self.busy_bytes
        return self._find(key) is not None or not busy or busy + needed_bytes <= self.limit_bytes

    @property
    def busy_bytes(self) -> int:
        """Bytes of the models that jobs run on."""
        return sum(model.size_bytes for model in self.busy)

    def release(self, model: CachedModel, *, owner: str) -> None:
        """Ends the use of a model by the execution of this name; the model stays in memory until another needs it."""
        model.refcount -= 1
        model.idle_since = time.monotonic()
        model.owners = {id: name for id, name in model.owners.items() if name != owner}

    def evict(self, model: CachedModel) -> None:
        """Removes a model from memory."""
        self.models.remove(model)
        model.engine.close()
        gc.collect()
        if isinstance(model.loaded, LoadedModel) and model.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def evict_unused(self) -> None:
        """Removes the models that no job runs on."""
        for model in [model for model in self.models if not model.refcount]:
            self.evict(model)

    def evict_idle(self, seconds: float) -> None:
        """Removes the models of engines outside of this process that no job has run on for this time; 0 keeps all."""
        end = time.monotonic() - seconds
        for model in [
            model for model in self.models if not model.refcount and not model.engine.computes_here
        ]:
            if seconds and model.idle_since < end:
                self.evict(model)

    def _find(self, key: ModelKey) -> CachedModel | None:
        return next((model for model in self.models if model.key == key), None)

    def _make_room(self, needed_bytes: int) -> bool:
        idle = sorted(
            (model for model in self.models if not model.refcount), key=lambda model: model.last_use
        )
        while self.models and self._size_bytes() + needed_bytes > self.limit_bytes:
            if not idle:
                return False
            self.evict(idle.pop(0))
        return True

    def _size_bytes(self) -> int:
        return sum(model.size_bytes for model in self.models)

    def _load(self, key: ModelKey, context: JobContext) -> CachedModel:
        if key.engine in self.loaders:
            model = self.loaders[key.engine].load(key, context)
        else:
            model = self._load_here(key, context)
        self.models.append(model)
        return model

    def _load_here(self, key: ModelKey, context: JobContext) -> CachedModel:
        with folder_of(key, context) as folder:
            loaded = load_model(
                folder,
                device=self.device,
                rope_alpha=key.rope_alpha,
                quantization=key.quantization,
                report=context.execution.report,
            )
        return CachedModel(key, loaded, Engine(loaded, slots=self.slots, prefixes=self.prefixes))


def key_of(choice: ModelChoice, store: ModelStore, engine: EngineName = "graftwerk") -> ModelKey:
    """Returns the key of the model that a request or a variant names, on an engine.

    Raises:
        ModelNotFound: a folder does not exist.
    """
    adapters = tuple(
        (adapter.name, adapter.scale, folder_stamp(store.path(adapter.name))) for adapter in choice.adapters
    )
    stamp = folder_stamp(store.path(choice.model))
    return ModelKey(choice.model, stamp, adapters, choice.quantization, choice.rope_alpha, engine)


def memory_limit_bytes(device: str, limit_file: Path = MEMORY_LIMIT_FILE) -> int:
    """Returns half of the device's memory, or half of the memory that this process's container may use."""
    target = resolve_device(device)
    if target.type == "cuda":
        return int(torch.cuda.mem_get_info(target)[1]) // 2
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit_file.is_file():
        limit = limit_file.read_text(encoding="ascii").strip()
        total = total if limit == "max" else min(total, int(limit))
    return total // 2


def folder_stamp(folder: Path) -> Stamp:
    """Returns the state of a folder's files."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def _needed_bytes(key: ModelKey, store: ModelStore, device: str) -> int:
    """Returns the bytes that a model's parameters take in memory; those of merged adapters are negligible."""
    summary = store.describe(key.model)
    parameters = summary.parameters or summary.size_bytes
    width = 4 if resolve_device(device).type == "cpu" else 2
    if key.quantization is None:
        return parameters * width
    sizes = summary.architecture or {}
    embeddings = (summary.vocabulary_size or 0) * int(sizes.get("hidden_size", 0))
    kept = embeddings if sizes.get("tie_word_embeddings") else 2 * embeddings
    return quantized_bytes(parameters, min(kept, parameters), key.quantization, width=width)


@contextmanager
def folder_of(key: ModelKey, context: JobContext) -> Iterator[Path]:
    """The model's folder; with adapters, a temporary folder with the merged model.

    The merge is that of a merge job, so the output equals the merged model's for all adapters, including those with a
    larger vocabulary.
    """
    if not key.adapters:
        yield context.store.path(key.model)
        return
    execution = context.execution
    scratch = context.store.staging.root / execution.name
    scratch.mkdir(parents=True)
    try:
        adapters = [(name, context.store.path(name), scale) for name, scale, _ in key.adapters]
        hooks = WriteHooks(execution.report, execution.check_canceled)
        merge(context.store.path(key.model), adapters, scratch, hooks=hooks)
        yield scratch
    finally:
        rmtree(scratch, ignore_errors=True)
