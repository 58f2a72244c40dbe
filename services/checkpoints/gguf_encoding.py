"""Encodings of GGUF tensors: rows of values to rows of bytes, and back with a bound on the error."""

import gguf
import torch

from services.checkpoints.tensor_reader import check_finite
from services.errors import NonFiniteTensor

Q8_0_LARGEST = 127 * 65504.0
"""Largest value of a block whose scale a float16 can hold."""


def encode(name: str, block: torch.Tensor, encoding: str) -> torch.Tensor:
    """Returns rows of shape (rows, columns) in an encoding: in its dtype, or as rows of bytes (uint8).

    Raises:
        NonFiniteTensor: A value is too large for the encoding.
    """
    if encoding == "Q8_0":
        return _to_q8_0(name, block)
    if encoding == "F32" and block.dtype != torch.float32:
        block = block.float()  # a vector: exact from float16 and bfloat16
        check_finite(name, block)
    return block


def _to_q8_0(name: str, block: torch.Tensor) -> torch.Tensor:
    values = block.float()
    largest = float(values.abs().max())
    if largest > Q8_0_LARGEST:
        raise NonFiniteTensor(
            f"{name!r} holds {largest:.4g}; Q8_0 encodes values up to {Q8_0_LARGEST:.4g}.",
            "Choose another dtype.",
        )
    encoded = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)
    return torch.from_numpy(encoded)


def decode_q8_0(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the values of rows of bytes in Q8_0 and a bound on the error of each; both float64 of shape (rows, columns).

    A block is a float16 scale d and 32 signed bytes q (ggml `ggml-common.h`, block_q8_0): rounding q costs d / 2, rounding d
    half a unit in its last place, 127 times.
    """
    blocks = rows.view(rows.shape[0], -1, 34)
    scales = blocks[..., :2].contiguous().view(torch.float16).double()
    values = blocks[..., 2:].contiguous().view(torch.int8).double() * scales
    unit = torch.exp2(torch.floor(torch.log2(scales.clamp(min=2.0**-14)))) * torch.finfo(torch.float16).eps
    slack = (1.001 * (scales / 2 + 127 * unit / 2)).expand_as(values)
    return values.reshape(rows.shape[0], -1), slack.reshape(rows.shape[0], -1)
