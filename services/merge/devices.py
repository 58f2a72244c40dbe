"""Devices that compute a merge's products: the CPU, or a GPU with full float32 precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Context manager in which products of float32 matrices have full precision: TF32 is off, even if the process uses it.

    The setting applies to the process: set it once around all threads (torch 2.9 on, `fp32_precision`: "ieee" or "tf32").
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
    """Returns a device's display name: "cpu", or "cuda:0 (NVIDIA H100 PCIe)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
