"""Encodings of GGUF tensors: rows of values to rows of bytes, by `libgguf`, which gives the bytes of ggml's own encoders."""

import os
import threading

import gguf
import libgguf
import numpy as np
import torch
from numpy.typing import NDArray

from services.checkpoints.streaming import THREADS
from services.checkpoints.tensor_reader import TORCH_DTYPES, check_finite
from services.errors import NonFiniteTensor
from services.files.tensors import BLOCKS

FLOAT16_LARGEST = 65504.0

LARGEST = {"Q8_0": 127 * FLOAT16_LARGEST}
"""Largest values of a block whose scale a float16 can hold. Of the other encodings some hold a block's value itself as float16."""

_lock = threading.Lock()
_prepared: set[str] = set()

Importance = NDArray[np.float32]
"""Weights of a matrix's columns: float32 of shape (columns,), positive or zero."""


def share_cores() -> None:
    """Gives each of the threads that write tensors its share of the cores within libgguf, which reads its setting at each call."""
    os.environ.setdefault("LIBGGUF_NUM_THREADS", str(max(1, torch.get_num_threads() // THREADS)))


def encode(
    name: str, block: torch.Tensor, encoding: str, importance: Importance | None = None
) -> torch.Tensor:
    """Returns rows of shape (rows, columns) in an encoding: in its dtype, or as rows of bytes (uint8).

    Args:
        importance: Weights of the columns, None to weigh all alike.

    Raises:
        NonFiniteTensor: A value is too large for the encoding.
    """
    if encoding in BLOCKS:
        return _to_blocks(name, block, encoding, importance)
    converted = block.to(TORCH_DTYPES[encoding])
    if converted is not block:
        check_finite(name, converted)
    return converted


def _to_blocks(name: str, block: torch.Tensor, encoding: str, importance: Importance | None) -> torch.Tensor:
    values = block.float().contiguous()
    largest, limit = float(values.abs().max()), LARGEST.get(encoding, FLOAT16_LARGEST)
    if not largest <= limit:  # NaN and infinity, which the encoders take silently, are too large as well
        raise NonFiniteTensor(
            f"{name!r} holds {largest:.4g}; {encoding} encodes values up to {limit:.4g}.",
            "Choose another dtype.",
        )
    code = gguf.GGMLQuantizationType[encoding]
    _prepare(encoding)
    return torch.from_numpy(libgguf.quantize_rows(values.numpy(), code, importance))


def _prepare(encoding: str) -> None:
    """Has libgguf make its tables of an encoding: it does so at the first call, and two first calls at once crash the process."""
    with _lock:
        if encoding not in _prepared:
            block, _ = BLOCKS[encoding]
            libgguf.quantize_rows(np.ones((1, block), np.float32), gguf.GGMLQuantizationType[encoding])
            _prepared.add(encoding)
