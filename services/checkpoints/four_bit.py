"""Weights rounded to 4 bits and back by bitsandbytes, on the CPU and whole: the scales of a tensor share an offset."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from services.architectures.four_bit import FourBit
from services.errors import UnsupportedOption
from services.files.tensors import TensorHeader


def bitsandbytes() -> Any:
    """Returns the package bitsandbytes.

    Raises:
        UnsupportedOption: It is not installed, or does not start on this machine.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UnsupportedOption(
            "A dequantized base needs the package bitsandbytes, which is not installed in this worker.",
            'Install it with `pip install "graftwerk-service[quantization]"`, or leave base_precision at "original".',
        )
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        raise UnsupportedOption(
            f"A dequantized base needs the package bitsandbytes, which does not start here: {error}.",
            "Install a release of it that supports this machine.",
        ) from error


def rounded(tensor: torch.Tensor, four_bit: FourBit) -> torch.Tensor:
    """Returns a tensor quantized to 4 bits and dequantized, in its dtype and shape. Peak memory: three copies in float32."""
    functional = bitsandbytes().functional
    weight = tensor.T if four_bit.transposed else tensor
    codes, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=four_bit.block_size, compress_statistics=four_bit.double,
        quant_type=four_bit.quant_type,
    )  # fmt: skip
    found: torch.Tensor = functional.dequantize_4bit(codes, state)
    return found.T.contiguous() if four_bit.transposed else found


def dequantized(view: Callable[[TensorHeader], torch.Tensor], four_bit: FourBit) -> torch.Tensor:
    """Returns a weight that a file stores in 4 bits, in the shape and dtype that its description states."""
    functional = bitsandbytes().functional
    stored = {key: view(header) for key, header in four_bit.stored.items()}
    codes = stored.pop("weight")
    state = functional.QuantState.from_dict(stored, device=torch.device("cpu"))
    return functional.dequantize_4bit(codes, state)  # type: ignore[no-any-return]
