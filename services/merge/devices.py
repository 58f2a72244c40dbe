"""Where a merge's products are computed: on the CPU, or on a GPU with float32 as exact as there."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of float32 matrices with all its bits while it lasts: no TF32, whatever the process has chosen.

    The setting is the process's: set it once around all threads (torch 2.9 on, `fp32_precision`: "ieee" or "tf32").
    """
    if device.type != "cuda":
        yield
        return
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def device_name(device: torch.device) -> str:
    """What computed, for people: "cpu", or "cuda:0 (NVIDIA H100 PCIe)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
