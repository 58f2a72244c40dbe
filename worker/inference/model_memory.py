"""Memory of loaded models: the limit unless a setting gives one, and what a model takes."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from services.generate import resolve_device
from services.generate.kv_memory import KVMemory
from services.generate.quantization import quantized_bytes
from services.jobs.status import KVCacheState
from services.models.store import ModelStore
from services.preflight.plan import PROCESS_BYTES
from services.settings import Settings
from worker.inference.model_key import ModelKey

MEMORY_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")
"""cgroup v2: bytes, or "max"."""


KV_SHARE, LEAST_KV_SHARE = 4, 16
"""Memory of the device or container, divided by that of keys and values: usually, and next to a model that takes most of it."""


def memory_limit_bytes(device: str, limit_file: Path = MEMORY_LIMIT_FILE) -> int:
    """Returns half of the device's memory, or half of the memory that this process's container may use."""
    return total_bytes(device, limit_file) // 2


def kv_limit_of(settings: Settings) -> Callable[[int], int]:
    """Returns a function of the bytes of the largest model in memory: the bytes for keys and values of a worker."""
    if settings.kv_cache_bytes:
        return lambda model: settings.kv_cache_bytes
    return partial(kv_limit_bytes, total_bytes(settings.device))


def kv_limit_bytes(total: int, model: int) -> int:
    """Returns the default for keys and values: a quarter of the memory, or less next to a model of more than half of it."""
    return max(total // LEAST_KV_SHARE, min(total // KV_SHARE, total - model - PROCESS_BYTES))


def total_bytes(device: str, limit_file: Path = MEMORY_LIMIT_FILE) -> int:
    """Returns the device's memory, or the memory that this process's container may use."""
    target = resolve_device(device)
    if target.type == "cuda":
        return int(torch.cuda.mem_get_info(target)[1])
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit_file.is_file():
        limit = limit_file.read_text(encoding="ascii").strip()
        total = total if limit == "max" else min(total, int(limit))
    return total


def parameter_bytes(device: str) -> int:
    """Returns the bytes of a parameter on a device of this name."""
    return 4 if resolve_device(device).type == "cpu" else 2


def model_bytes(key: ModelKey, store: ModelStore, device: str) -> int:
    """Returns the bytes that a model's parameters take in memory; those of merged adapters are negligible."""
    summary = store.describe(key.model)
    parameters = summary.parameters or summary.size_bytes
    width = parameter_bytes(device)
    if key.quantization is None:
        return parameters * width
    sizes = summary.architecture or {}
    embeddings = (summary.vocabulary_size or 0) * int(sizes.get("hidden_size", 0))
    kept = embeddings if sizes.get("tie_word_embeddings") else 2 * embeddings
    return quantized_bytes(parameters, min(kept, parameters), key.quantization, width=width)


def kv_cache_state(memory: KVMemory) -> KVCacheState:
    """Returns the state of the keys and values for the operator."""
    prefixes = memory.prefixes
    return KVCacheState(
        limit_bytes=memory.limit_bytes,
        held_bytes=memory.held_bytes,
        waiting_requests=memory.waiting,
        prefix_bytes=prefixes.size_bytes,
        prefix_hits=prefixes.hits,
        prefix_reused_tokens=prefixes.reused_tokens,
        prefix_read_tokens=prefixes.read_tokens,
        prefix_evictions=prefixes.evictions,
    )
