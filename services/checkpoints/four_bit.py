"""Weights rounded to 4 bits and back by bitsandbytes, on the CPU and whole: the scales of a tensor share an offset."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from services.architectures.four_bit import FourBit
from services.errors import UnsupportedOption
from services.files.tensors import TensorHeader


def require_bitsandbytes(user: str, installing: str, starting: str = "") -> Any:
    """Returns the package bitsandbytes.

    Args:
        user: Subject of the refusal: the work that needs the package.
        installing: Alternative to installing it, the end of the hint.
        starting: Alternative to another release of it, if there is one.

    Raises:
        UnsupportedOption: It is not installed, or does not start on this machine.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UnsupportedOption(
            f"{user} needs the package bitsandbytes, which is not installed in this worker.",
            f'Install it with `pip install "graftwerk-service[quantization]"`{installing}.',
        )
    try:
        return importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        raise UnsupportedOption(
            f"{user} needs the package bitsandbytes, which does not start here: {error}.",
            f"Install a release of it that supports this machine{starting}.",
        ) from error


def bitsandbytes() -> Any:
    """Returns the package bitsandbytes for a dequantized base; raises what `require_bitsandbytes` raises."""
    return require_bitsandbytes("A dequantized base", ', or leave base_precision at "original"')


def rounded(tensor: torch.Tensor, four_bit: FourBit) -> torch.Tensor:
    """Returns a tensor quantized to 4 bits and dequantized, in its dtype and shape. Peak memory: three copies in float32."""
    functional = bitsandbytes().functional
    weight = tensor.T if four_bit.transposed else tensor
    codes, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=four_bit.block_size, compress_statistics=four_bit.double,
        quant_type=four_bit.quant_type,
    )  # fmt: skip
    found = _dequantized(codes, state)
    return found.T.contiguous() if four_bit.transposed else found


def dequantized(view: Callable[[TensorHeader], torch.Tensor], four_bit: FourBit) -> torch.Tensor:
    """Returns a weight that a file stores in 4 bits, in the shape and dtype that its description states."""
    functional = bitsandbytes().functional
    stored = {key: view(header) for key, header in four_bit.stored.items()}
    codes = stored.pop("weight")
    state = functional.QuantState.from_dict(stored, device=torch.device("cpu"))
    return _dequantized(codes, state)


def _dequantized(codes: torch.Tensor, state: Any) -> torch.Tensor:
    """Returns the values of codes in the shape of their state.

    They are decoded as one row: on a CPU with AVX-512, bitsandbytes 0.50 takes the wrong scales where a block goes on in the next
    row.
    """
    shape = state.shape
    state.shape = torch.Size([shape.numel()])
    found: torch.Tensor = bitsandbytes().functional.dequantize_4bit(codes, state)
    return found.reshape(shape)
