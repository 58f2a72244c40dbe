"""Models on vLLM's servers: one server for a base and the adapters that it applies, one for each merged copy."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from services.adapters.adapter import read_adapter
from services.adapters.stack import check_stack
from services.adapters.vllm_adapter import merge_reason
from services.architectures.checkpoint_reader import read_checkpoint
from services.engines.output import ServedAdapter
from services.engines.vllm import VllmOptions
from services.engines.vllm_server import VllmServer
from services.generate import ServedModel, read_served_model, resolve_device
from services.generate.loading import choose_dtype
from services.kinds.shared import AdapterChoice
from services.models.store import ModelStore
from services.preflight.vllm import check_vllm_loading
from services.settings import Settings
from worker.inference.cached_model import CachedModel
from worker.inference.model_folder import folder_of
from worker.inference.model_key import ModelKey
from worker.inference.vllm_engine import VllmEngine
from worker.lifecycle import JobContext

CPU_CACHE_BYTES = 4 * 2**30
"""Memory of a KV cache on a CPU where no setting names it; on a GPU vLLM takes what the model leaves."""

logger = logging.getLogger("graftwerk.vllm")


def cache_bytes_of(settings: Settings) -> int:
    """Returns the bytes of the KV cache of a server, 0 if vLLM takes what the model leaves."""
    is_cpu = resolve_device(settings.device).type == "cpu"
    return settings.vllm_cache_bytes or (CPU_CACHE_BYTES if is_cpu else 0)


@dataclass(slots=True, eq=False)
class SharedServer:
    """A server with its model, and the number of engines that use it."""

    server: VllmServer
    model: ServedModel
    engines: int = 0


@dataclass(slots=True, eq=False)
class VllmModels:
    """Starts servers for the models in demand, and stops those that no engine uses.

    `notify` is called in other threads when a server has sent something.
    """

    settings: Settings
    limit_bytes: int
    notify: Callable[[], None]
    _servers: dict[ModelKey, SharedServer] = field(default_factory=dict)

    def needed_bytes(self, key: ModelKey, store: ModelStore) -> int:
        """Returns the bytes that `load` would need. Raises ModelNotFound, and the errors of adapters that do not fit."""
        check_vllm_loading(key.quantization, key.rope_alpha)
        shared = self._servers.get(self._server_key(key, store))
        if shared is not None and not shared.server.is_lost:
            return 0
        return self._server_bytes(key, store)

    def load(self, key: ModelKey, context: JobContext) -> CachedModel:
        """Returns a model, whose server may still be starting.

        Raises:
            UnsupportedOption: vLLM does not load a model this way.
            InvalidSettings: vLLM is not installed.
            GraftwerkError: as `read_served_model` and `merge`.
        """
        check_vllm_loading(key.quantization, key.rope_alpha)
        server_key = self._server_key(key, context.store)
        shared = self._servers.get(server_key)
        if shared is None or shared.server.is_lost:
            shared = self._servers[server_key] = self._start(server_key, context)
        shared.engines += 1
        adapter = None
        if server_key.adapters != key.adapters:
            ((name, _, stamp),) = key.adapters
            digest = hashlib.sha256(repr(stamp).encode()).hexdigest()[:12]
            adapter = ServedAdapter(f"{name}@{digest}", context.store.path(name))
        engine = VllmEngine(
            loaded=shared.model,
            server=shared.server,
            adapter=adapter,
            slots=self.settings.generate_slots,
            notify=self.notify,
            on_close=partial(self._release, server_key, shared),
        )
        return CachedModel(
            key,
            shared.model,
            engine,
            share_bytes=partial(_share_bytes, shared),
            is_unmerged=adapter is not None,
        )

    def _release(self, key: ModelKey, shared: SharedServer) -> None:
        """Stops a server that no engine uses any more."""
        shared.engines -= 1
        if not shared.engines:
            if self._servers.get(key) is shared:
                del self._servers[key]
            shared.server.stop()

    def _start(self, key: ModelKey, context: JobContext) -> SharedServer:
        settings, device = self.settings, resolve_device(self.settings.device)
        dtype = choose_dtype(None if settings.vllm_dtype == "auto" else settings.vllm_dtype, device)
        with ExitStack() as scratch:
            folder = scratch.enter_context(folder_of(key, context))
            model = read_served_model(
                folder,
                context=settings.vllm_context,
                size_bytes=self._server_bytes(key, context.store),
                device_name=str(device),
                dtype_name=str(dtype).removeprefix("torch."),
            )
            options = VllmOptions(
                command=settings.vllm_command,
                slots=settings.generate_slots,
                dtype=model.dtype_name,
                context=model.context_length,
                cache_bytes=cache_bytes_of(settings),
                tensor_parallel=settings.vllm_tensor_parallel,
                adapter_rank=settings.vllm_adapter_rank,
                start_seconds=settings.vllm_start_seconds,
            )
            logger.info("vLLM is started with %s.", key.name)
            server = VllmServer(key.name, folder, options)
            server.when_started(scratch.pop_all().close)
        return SharedServer(server, model)

    def _server_bytes(self, key: ModelKey, store: ModelStore) -> int:
        """Returns the bytes of a server: weights and KV cache, or all of the limit if vLLM takes what the model leaves."""
        summary = store.describe(key.model)
        device = resolve_device(self.settings.device)
        dtype = choose_dtype(None if self.settings.vllm_dtype == "auto" else self.settings.vllm_dtype, device)
        weights = (summary.parameters or summary.size_bytes) * dtype.itemsize
        cache_bytes = cache_bytes_of(self.settings)
        return weights + cache_bytes if cache_bytes else max(weights, self.limit_bytes)

    def _server_key(self, key: ModelKey, store: ModelStore) -> ModelKey:
        """Returns the key of the server: that of the base if vLLM applies the adapter to it, else of a merged copy."""
        if not key.unmerged:
            return key
        choices = [AdapterChoice(name=name, scale=scale) for name, scale, _ in key.adapters]
        base = read_checkpoint(store.path(key.model))
        adapters = [read_adapter(store.path(choice.name), choice.name, experts=True) for choice in choices]
        reason = merge_reason(choices, check_stack(base, adapters), self.settings.vllm_adapter_rank)
        return key.base if reason is None else replace(key, unmerged=False)


def _share_bytes(shared: SharedServer) -> int:
    """Returns the bytes of a server for each of the engines that use it."""
    return shared.model.size_bytes // shared.engines
