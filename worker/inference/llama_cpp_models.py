"""GGUF models in processes of llama.cpp: one process for each model with its adapters.

Requests with other adapters never share a process: llama.cpp's slots then hold the keys and values of one stack alone.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.adapters.gguf_adapter_file import check_gguf_adapter
from services.architectures.checkpoint import Checkpoint
from services.architectures.checkpoint_reader import read_checkpoint
from services.architectures.gguf_memory import context_of, llama_cpp_bytes
from services.engines.llama_cpp import ALL_LAYERS, LlamaCppOptions
from services.engines.llama_cpp_server import LlamaCppServer
from services.errors import UnsupportedOption
from services.generate import read_served_gguf, resolve_device
from services.generate_engines import GgufLimits
from services.models.store import ModelStore
from services.models.summary import kind_of_folder
from services.preflight.gguf_model import check_adapter_kind
from services.settings import Settings
from worker.inference.cached_model import CachedModel
from worker.inference.llama_cpp_engine import LlamaCppEngine
from worker.inference.model_key import ModelKey
from worker.lifecycle import JobContext
from worker.processor import usable_cores

logger = logging.getLogger("graftwerk.llama_cpp")


@dataclass(slots=True, eq=False)
class LlamaCppModels:
    """Starts processes for the models in demand. `notify` is called in other threads when one has sent something."""

    settings: Settings
    notify: Callable[[], None]

    def needed_bytes(self, key: ModelKey, store: ModelStore) -> int:
        """Returns the bytes of a process with this model. Raises ModelNotFound, and the errors of headers."""
        return self._bytes(read_checkpoint(store.path(key.model)), key)

    def load(self, key: ModelKey, context: JobContext) -> CachedModel:
        """Returns a model, whose process loads its weights meanwhile.

        Raises:
            UnsupportedOption: llama.cpp does not load a model this way.
            WrongModelKind, AdapterMismatch, UnsupportedAdapter: an adapter does not fit.
            GraftwerkError: the model's headers are damaged, or of a family that is not known.
        """
        _check_options(key)
        store, settings = context.store, self.settings
        folder = store.path(key.model)
        checkpoint = read_checkpoint(folder)
        device = resolve_device(settings.device)
        options = LlamaCppOptions(
            model=checkpoint.weight_files[0],
            adapters=self._adapters(key, store),
            slots=settings.generate_slots,
            context=context_of(checkpoint, self._limits),
            threads=settings.torch_threads or usable_cores(),
            gpu_layers=0 if device.type == "cpu" else ALL_LAYERS,
            memory_bytes=self._bytes(checkpoint, key),
            start_seconds=settings.llama_cpp_start_seconds,
        )
        model = read_served_gguf(
            checkpoint,
            context=options.context,
            size_bytes=options.memory_bytes,
            device_name=str(device),
        )
        logger.info("llama.cpp is started with %s.", key.name)
        server = LlamaCppServer(key.name, options, model.tokenizer.token_bytes())
        server.when_started(self.notify)
        engine = LlamaCppEngine(
            loaded=model,
            server=server,
            slots=settings.generate_slots,
            notify=self.notify,
            on_close=server.stop,
        )
        return CachedModel(key, model, engine, is_unmerged=bool(key.adapters))

    @property
    def _limits(self) -> GgufLimits:
        return GgufLimits(self.settings.generate_slots, self.settings.llama_cpp_context)

    def _bytes(self, checkpoint: Checkpoint, key: ModelKey) -> int:
        adapters = sum(size for _, _, stamp in key.adapters for _, size, _ in stamp)
        return llama_cpp_bytes(checkpoint, self._limits) + adapters

    def _adapters(self, key: ModelKey, store: ModelStore) -> tuple[tuple[Path, float], ...]:
        base = store.path(key.model)
        for name, _, _ in key.adapters:
            check_adapter_kind(name, key.model, kind_of_folder(store.path(name)))
        return tuple(
            (check_gguf_adapter(store.path(name), base).path, scale) for name, scale, _ in key.adapters
        )


def _check_options(key: ModelKey) -> None:
    """Refuses ways to load a model that llama.cpp does not have."""
    for name, value in (("quantization", key.quantization), ("rope_alpha", key.rope_alpha)):
        if value is not None:
            raise UnsupportedOption(
                f"llama.cpp does not load a model with {name}; the request sets it to {value}.",
                f"Leave {name} out.",
            )
