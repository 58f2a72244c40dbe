"""Decoding of GGUF's block encodings: rows of bytes to values, by the `gguf` package."""

import gguf
import numpy as np
import torch


def decode(rows: torch.Tensor, encoding: str) -> torch.Tensor:
    """Returns the values of rows of bytes, which are not finite if a block's scale is not.

    Args:
        rows: Blocks as they are stored, uint8 of shape (rows, bytes of a row).
        encoding: ggml's name of the block encoding ("Q4_K").

    Returns:
        Values, float32 of shape (rows, columns).
    """
    with np.errstate(all="ignore"):  # the reader refuses what is not finite
        values = gguf.quants.dequantize(rows.numpy(), gguf.GGMLQuantizationType[encoding])
    return torch.from_numpy(values)
