"""The models that a generation worker holds in memory: loaded once, given up when room is needed."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from shutil import rmtree

import torch

from services.checkpoints.write_hooks import WriteHooks
from services.generate import Engine, LoadedModel, load_model, resolve_device
from services.generate.quantization import Quantization, quantized_bytes
from services.kinds.shared import ModelRequest
from services.merge import merge
from services.models.store import ModelStore
from worker.lifecycle import JobContext

MEMORY_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")
"""cgroup v2: bytes, or "max"."""

Stamp = tuple[tuple[str, int, int], ...]
"""Name, size and time of change (ns) of each file of a folder."""


@dataclass(frozen=True, slots=True)
class ModelKey:
    """What makes two requests share a loaded model: the same files, loaded the same way."""

    model: str
    stamp: Stamp
    adapters: tuple[tuple[str, float, Stamp], ...]
    quantization: Quantization | None
    rope_alpha: float | None


@dataclass(slots=True, eq=False)
class CachedModel:
    """One loaded model and its engine; `users` counts the jobs that need it now."""

    key: ModelKey
    loaded: LoadedModel
    engine: Engine
    users: int = 0
    last_use: int = 0


@dataclass(slots=True)
class ModelCache:
    """Loaded models, together at most `limit_bytes` (one alone may be larger)."""

    device: str
    limit_bytes: int
    slots: int
    models: list[CachedModel] = field(default_factory=list)
    clock: Iterator[int] = field(default_factory=count)

    def find(self, key: ModelKey) -> CachedModel | None:
        """The loaded model, if it is there."""
        return next((resident for resident in self.models if resident.key == key), None)

    def take(self, request: ModelRequest, context: JobContext) -> CachedModel | None:
        """The model that a request needs, loaded if it must be; None while busy models leave no room.

        Raises whatever `load_model` and `merge` refuse, ModelNotFound.
        """
        key = key_of(request, context.store)
        resident = self.find(key)
        if resident is None:
            if not self._make_room(_needed_bytes(request, context.store, self.device)):
                return None
            resident = self._load(key, request, context)
        resident.users += 1
        resident.last_use = next(self.clock)
        return resident

    def drop(self, resident: CachedModel) -> None:
        """Give a model up."""
        self.models.remove(resident)
        gc.collect()
        if resident.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def _make_room(self, needed_bytes: int) -> bool:
        idle = sorted((one for one in self.models if not one.users), key=lambda one: one.last_use)
        while self.models and self._size_bytes() + needed_bytes > self.limit_bytes:
            if not idle:
                return False
            self.drop(idle.pop(0))
        return True

    def _size_bytes(self) -> int:
        return sum(resident.loaded.size_bytes for resident in self.models)

    def _load(self, key: ModelKey, request: ModelRequest, context: JobContext) -> CachedModel:
        with _folder_of(request, context) as folder:
            loaded = load_model(
                folder,
                device=self.device,
                rope_alpha=request.rope_alpha,
                quantization=request.quantization,
                report=context.execution.report,
            )
        resident = CachedModel(key, loaded, Engine(loaded, slots=self.slots))
        self.models.append(resident)
        return resident


def alone(request: ModelRequest, context: JobContext) -> CachedModel:
    """The model of a job that has one to itself. Raises what `ModelCache.take` raises."""
    settings = context.settings
    resident = ModelCache(settings.device, sys.maxsize, settings.generate_slots).take(request, context)
    assert resident is not None  # there is always room for the first
    return resident


def key_of(request: ModelRequest, store: ModelStore) -> ModelKey:
    """The key of the model that a request needs. Raises ModelNotFound."""
    adapters = tuple(
        (choice.name, choice.scale, _stamp(store.path(choice.name))) for choice in request.adapters
    )
    stamp = _stamp(store.path(request.model))
    return ModelKey(request.model, stamp, adapters, request.quantization, request.rope_alpha)


def memory_limit_bytes(device: str, limit_file: Path = MEMORY_LIMIT_FILE) -> int:
    """Half of the memory that the device has, or that this process's container may use."""
    target = resolve_device(device)
    if target.type == "cuda":
        return int(torch.cuda.mem_get_info(target)[1]) // 2
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit_file.is_file():
        limit = limit_file.read_text(encoding="ascii").strip()
        total = total if limit == "max" else min(total, int(limit))
    return total // 2


def _stamp(folder: Path) -> Stamp:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def _needed_bytes(request: ModelRequest, store: ModelStore, device: str) -> int:
    """Parameters of the base times what one takes in memory; adapters add next to nothing."""
    summary = store.describe(request.model)
    parameters = summary.parameters or summary.size_bytes
    width = 4 if resolve_device(device).type == "cpu" else 2
    if request.quantization is None:
        return parameters * width
    sizes = summary.architecture or {}
    embeddings = (summary.vocabulary_size or 0) * int(sizes.get("hidden_size", 0))
    kept = embeddings if sizes.get("tie_word_embeddings") else 2 * embeddings
    return quantized_bytes(parameters, min(kept, parameters), request.quantization, width=width)


@contextmanager
def _folder_of(request: ModelRequest, context: JobContext) -> Iterator[Path]:
    """The model's folder; with adapters one that they are merged into and that is gone afterwards.

    The merge is the same as a merge job's, so the text is that of the merged model, whatever the adapters
    bring along (a larger vocabulary, say).
    """
    if not request.adapters:
        yield context.store.path(request.model)
        return
    scratch = context.store.staging.root / context.execution.name
    scratch.mkdir(parents=True)
    try:
        adapters = [
            (choice.name, context.store.path(choice.name), choice.scale) for choice in request.adapters
        ]
        hooks = WriteHooks(context.execution.report, context.execution.check_canceled)
        merge(context.store.path(request.model), adapters, scratch, hooks=hooks)
        yield scratch
    finally:
        rmtree(scratch, ignore_errors=True)
