"""Cache of loaded models: each is loaded once and evicted when another one needs its memory.

Adapters that are applied unmerged are entries of their own on the entry of their base, and share its engine.
"""

import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

import torch

from services.generate import (
    Engine,
    LoadedModel,
    load_model,
)
from services.generate.adapter_stack import LoadedAdapter
from services.generate.kv_memory import KVMemory
from services.generate_engines import Engine as EngineName
from services.models.store import ModelStore
from worker.inference.adapter_stacks import (
    StackDescription,
    describe_stack,
    possible_key,
)
from worker.inference.cached_model import CachedModel
from worker.inference.model_folder import folder_of
from worker.inference.model_key import ModelKey
from worker.inference.model_memory import model_bytes, parameter_bytes
from worker.lifecycle import JobContext


def _no_limit(model_bytes: int) -> int:
    return sys.maxsize


class ModelLoader(Protocol):
    """Models of an engine outside of this process."""

    def needed_bytes(self, key: ModelKey, store: ModelStore) -> int:
        """Returns the bytes that `load` would need."""

    def load(self, key: ModelKey, context: JobContext) -> CachedModel:
        """Returns a model, whose engine may take requests later only."""


@dataclass(slots=True)
class ModelCache:
    """Loaded models of at most `limit_bytes` together (a single one may be larger). `slots` is per engine.

    All in this process share one `memory` of keys and values, which `kv_limit` returns for the bytes of the
    largest model. `loaders` has the engines outside of it.
    """

    device: str
    limit_bytes: int
    slots: int
    loaders: Mapping[EngineName, ModelLoader] = field(default_factory=dict)
    models: list[CachedModel] = field(default_factory=list)
    clock: Iterator[int] = field(default_factory=count)
    memory: KVMemory = field(init=False)
    kv_limit: Callable[[int], int] = _no_limit

    def __post_init__(self) -> None:
        self.memory = KVMemory(self.kv_limit(0))

    @property
    def busy(self) -> list[CachedModel]:
        """The models that jobs run on, each with an engine of its own."""
        return [model for model in self.models if model.refcount and model.base is None]

    def acquire(self, key: ModelKey, context: JobContext) -> CachedModel | None:
        """Returns the model with this key, loaded if necessary; None while busy models leave no memory for it.

        Adapters that cannot be applied unmerged are merged: the key of the model that is returned says so.

        Raises:
            ModelNotFound: a folder does not exist.
            GraftwerkError: see `load_model` and `merge`.
        """
        self._evict_unused_if(lambda model: model.engine.is_lost)
        key = possible_key(key, context.store)
        if key.is_stack:
            return self._acquire_stack(key, context)
        model = self._find(key)
        if model is None:
            if not self._make_room(self.needed_bytes(key, context.store)):
                return None
            model = self._load(key, context)
        self._use(model)
        return model

    def _acquire_stack(self, key: ModelKey, context: JobContext) -> CachedModel | None:
        base = self.acquire(key.base, context)
        if base is None:
            return None
        try:
            description = describe_stack(key, context.store)
            if base.pool.fits(description.stack):
                model = self._find(key) or self._load_stack(key, base, description)
                if model is not None:
                    self._use(model)
                return model
        finally:
            base.refcount -= 1  # the stack keeps it in use
        return self.acquire(replace(key, unmerged=False), context)

    def _load_stack(
        self, key: ModelKey, base: CachedModel, description: StackDescription
    ) -> CachedModel | None:
        fits = self._make_room(description.elements * base.local.dtype.itemsize)
        if not fits and (base.refcount > 1 or len(self.busy) > 1):
            return None
        loaded, stack = base.pool.load(description.stack, key)
        model = CachedModel(key, loaded, base.engine, base=base, stack=stack, is_unmerged=True)
        self._evict_other_scales(model)
        self.models.append(model)
        return model

    def _use(self, model: CachedModel) -> None:
        for used in {model, model.root}:
            used.refcount += 1
            used.last_use = next(self.clock)

    def needed_bytes(self, key: ModelKey, store: ModelStore) -> int:
        """Returns the bytes that `acquire` would need. Raises ModelNotFound."""
        key = possible_key(key, store)
        if self._find(key) is not None:
            return 0
        if key.engine in self.loaders:
            return self.loaders[key.engine].needed_bytes(key, store)
        if not key.is_stack:
            return model_bytes(key, store, self.device)
        elements = describe_stack(key, store).elements
        return self.needed_bytes(key.base, store) + elements * parameter_bytes(self.device)

    def fits(self, key: ModelKey, needed_bytes: int) -> bool:
        """Returns True if `acquire` would return the model; a single one may be larger than the limit."""
        busy = self.busy_bytes
        return self._find(key) is not None or not busy or busy + needed_bytes <= self.limit_bytes

    @property
    def busy_bytes(self) -> int:
        """Bytes of the models that jobs run on."""
        return _size_bytes(model for model in self.models if model.refcount)

    def release(self, model: CachedModel, *, owner: str) -> None:
        """Ends the use of a model by the execution of this name; the model stays in memory until another needs it."""
        for used in {model, model.root}:
            used.refcount -= 1
            used.idle_since = time.monotonic()
            used.owners = {id: name for id, name in used.owners.items() if name != owner}
        if not model.root.refcount:
            model.root.engine.drop_all()

    def evict(self, model: CachedModel) -> None:
        """Removes a model from memory, with the stacks on it."""
        self.models = [other for other in self.models if model not in (other, other.base)]
        self._limit_keys_and_values(0)
        if model.base is None:
            model.engine.close()
        else:
            self._free(model, model.base)
        gc.collect()
        if isinstance(model.loaded, LoadedModel) and model.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

    def evict_unused(self) -> None:
        """Removes the models that no job runs on."""
        while idle := self._idle():
            self.evict(idle[0])

    def evict_idle(self, seconds: float) -> None:
        """Removes the models of engines outside of this process that no job has run on for this time; 0 keeps all."""
        end = time.monotonic() - seconds if seconds else -math.inf
        self._evict_unused_if(lambda model: not model.engine.computes_here and model.idle_since < end)

    def _evict_unused_if(self, condition: Callable[[CachedModel], bool]) -> None:
        for model in [model for model in self.models if not model.refcount and condition(model)]:
            self.evict(model)

    def _find(self, key: ModelKey) -> CachedModel | None:
        return next((model for model in self.models if model.key == key), None)

    def _idle(self) -> list[CachedModel]:
        """Returns the models that no job runs on, the one that was not used for longest first."""
        return sorted((m for m in self.models if not m.refcount), key=lambda model: model.last_use)

    def _make_room(self, needed_bytes: int) -> bool:
        while self.models and _size_bytes(self.models) + needed_bytes > self.limit_bytes:
            idle = self._idle()
            if not idle:
                return False
            self.evict(idle[0])
        return True

    def _evict_other_scales(self, model: CachedModel) -> None:
        """Evicts idle stacks of the same adapters: a slider that is moved leaves one at each position."""
        for other in self._idle():
            if other.base is model.base and other.key.files == model.key.files:
                self.models.remove(other)

    def _free(self, model: CachedModel, base: CachedModel) -> None:
        """Frees the adapters of an evicted stack that no other stack has."""
        kept = {part for other in self.models for part in other.parts}
        base.pool.free([part for part in model.parts.keys() - kept if isinstance(part, LoadedAdapter)])

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
        self._limit_keys_and_values(loaded.size_bytes)
        engine = Engine(loaded, slots=self.slots, memory=self.memory)
        return CachedModel(key, loaded, engine)

    def _limit_keys_and_values(self, new_bytes: int) -> None:
        """Sets their limit. It shrinks for a model that takes most of the memory, next to which no other one runs."""
        sizes = [model.size_bytes for model in self.models]
        self.memory.set_limit(self.kv_limit(max([new_bytes, *sizes])))


def _size_bytes(models: Iterable[CachedModel]) -> int:
    return sum({part: size for model in models for part, size in model.parts.items()}.values())
