"""Seconds of one forward pass by dtype on the CPU: one row, eight rows, a prompt of 64 tokens."""

import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from services.generate import LoadedModel, load_model

SHAPES = {"one row": (1, 1), "eight rows": (8, 1), "prompt of 64": (1, 64)}
REPEATS = 3


def compare(folder: Path, runs: int) -> dict[str, dict[str, float]]:
    """Returns medians of interleaved runs in milliseconds, and the model's size in MB."""
    models: dict[str, LoadedModel] = {
        "float32": load_model(folder),
        "bfloat16": load_model(folder, dtype="bfloat16"),
        "float16": load_model(folder, dtype="float16"),
    }
    if importlib.util.find_spec("bitsandbytes"):
        models |= {
            "8bit": load_model(folder, quantization="8bit"),
            "4bit": load_model(folder, quantization="4bit"),
        }
    taken: dict[str, dict[str, list[float]]] = {name: {shape: [] for shape in SHAPES} for name in models}
    for _ in range(runs + 1):  # the first one warms up
        for name, loaded in models.items():
            for shape, size in SHAPES.items():
                taken[name][shape].append(_forward(loaded.model, torch.ones(size, dtype=torch.long)))
    return {
        name: {shape: round(statistics.median(found[1:]) * 1000, 1) for shape, found in shapes.items()}
        | {"megabytes": round(models[name].size_bytes / 1e6, 1)}
        for name, shapes in taken.items()
    }


@torch.inference_mode()
def _forward(model: Any, ids: torch.Tensor) -> float:
    start = time.monotonic()
    for _ in range(REPEATS):
        model(ids, logits_to_keep=1)
    return (time.monotonic() - start) / REPEATS
