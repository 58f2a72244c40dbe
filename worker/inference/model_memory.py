"""Memory of loaded models: the limit unless a setting gives one, and what a model takes."""

import os
from pathlib import Path

import torch

from services.generate import resolve_device
from services.generate.quantization import quantized_bytes
from services.models.store import ModelStore
from worker.inference.model_key import ModelKey

MEMORY_LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")
"""cgroup v2: bytes, or "max"."""


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
