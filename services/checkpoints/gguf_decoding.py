"""Values of GGUF's block encodings, decoded by `gguf`, and a bound on the error that encoding has made of each.

The bound is in steps of a block's scale. Where a block of 256 has scales for parts of it, these are integers in units of one
float16: rounding them costs half a unit, as many times as the code of the value says. Layouts of blocks: ggml `ggml-common.h`.
It holds for encodings without an importance matrix, which may give up any value of a column that does not matter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

FLOAT16_STEP = 2.0**-24
"""Distance between the smallest float16 numbers."""

NONLINEAR_GAP = 26
"""Half of the widest gap of iq4_nl's codes (24), and what its lowest code has more than its highest (14)."""


ROUNDED = frozenset(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"))
"""Encodings whose scales follow from a block's largest values; for the others ggml searches the best scales."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Scales of blocks: `step` between neighbouring codes of each part, `unit` that rounding a part's scales may cost.

    Both are of shape (blocks, parts). `largest` is the largest code, by which an error of the float16 scale is multiplied.
    """

    step: Floats
    unit: Floats | float
    largest: int


def decode(rows: torch.Tensor, encoding: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the values of rows of bytes in a block encoding and a bound on the error of each.

    Args:
        rows: uint8 of shape (rows, bytes).

    Returns:
        Two float64 tensors of shape (rows, columns).
    """
    data = np.ascontiguousarray(rows.numpy())
    code = gguf.GGMLQuantizationType[encoding]
    values = gguf.quants.dequantize(data, code).astype(np.float64)
    _, block_bytes = gguf.GGML_QUANT_SIZES[code]
    blocks = data.reshape(-1, block_bytes)
    bound = _bounds(encoding, blocks, values.reshape(len(blocks), -1)).reshape(values.shape)
    return torch.from_numpy(values), torch.from_numpy(bound)


def _bounds(encoding: str, blocks: Bytes, values: Floats) -> Floats:
    """Returns the bounds of blocks, of the shape of their values."""
    if encoding not in SCALES:  # points of a grid: its neighbours may move a value within the block's range
        largest = np.abs(values).max(axis=1, keepdims=True) + FLOAT16_STEP * 127
        return np.broadcast_to(largest, values.shape).copy()
    scales = SCALES[encoding](blocks)
    per_part = values.shape[1] // scales.step.shape[1]
    bound = np.repeat(STEPS.get(encoding, SEARCHED_STEPS) * scales.step + scales.unit, per_part, axis=1)
    rounded = np.abs(values) * 2.0**-10 + FLOAT16_STEP * scales.largest
    return np.asarray((1.001 if encoding in ROUNDED else SEARCHED) * (bound + rounded))


def _float16(data: Bytes) -> Floats:
    return np.ascontiguousarray(data).view(np.float16).astype(np.float64)


def _simple(largest: int) -> Callable[[Bytes], Scales]:
    return lambda blocks: Scales(np.abs(_float16(blocks[:, :2])), 0.0, largest)


def _with_minimum(largest: int) -> Callable[[Bytes], Scales]:
    def scales(blocks: Bytes) -> Scales:
        scale, low = np.abs(_float16(blocks[:, :2])), np.abs(_float16(blocks[:, 2:4]))
        return Scales(scale, (largest * scale + low) * 2.0**-10, largest)

    return scales


def _q2_k(blocks: Bytes) -> Scales:
    scale, low = _float16(blocks[:, 80:82]), _float16(blocks[:, 82:84])
    return Scales(scale * (blocks[:, :16] & 15), scale * 3 / 2 + low / 2, 45)


def _q3_k(blocks: Bytes) -> Scales:
    packed, scale = blocks[:, 96:108], np.abs(_float16(blocks[:, 108:110]))
    lower = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    upper = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    return Scales(scale * np.abs((lower | (upper << 4)).astype(np.float64) - 32), scale * 4 / 2, 128)


def _q4_k(codes: int) -> Callable[[Bytes], Scales]:
    def scales(blocks: Bytes) -> Scales:
        scale, low = _float16(blocks[:, :2]), _float16(blocks[:, 2:4])
        packed = blocks[:, 4:16]
        upper = (packed[:, 8:] & 15) | ((packed[:, :4] >> 2) & 0x30)
        parts = np.concatenate([packed[:, :4] & 63, upper], axis=1)
        return Scales(scale * parts, scale * codes / 2 + low / 2, 63 * codes)

    return scales


def _q6_k(blocks: Bytes) -> Scales:
    scale = np.abs(_float16(blocks[:, 208:210]))
    parts = np.abs(np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float64))
    return Scales(scale * parts, scale * 32 / 2, 128 * 32)


def _iq4_xs(blocks: Bytes) -> Scales:
    scale = np.abs(_float16(blocks[:, :2]))
    upper, lower = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16), blocks[:, 4:8]
    low = np.stack([lower & 15, lower >> 4], axis=-1).reshape(len(blocks), 8)
    high = (upper >> (2 * np.arange(8, dtype=np.uint16))) & 3
    return Scales(scale * np.abs((low | (high << 4)).astype(np.float64) - 32), scale * 127 / 2, 32 * 127)


SCALES: Mapping[str, Callable[[Bytes], Scales]] = {
    "Q4_0": _simple(8), "Q4_1": _with_minimum(15), "Q5_0": _simple(16), "Q5_1": _with_minimum(31), "Q8_0": _simple(127),
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k(15), "Q5_K": _q4_k(31), "Q6_K": _q6_k,
    "IQ4_NL": _simple(127), "IQ4_XS": _iq4_xs,
}  # fmt: skip
"""Scales of the blocks of an encoding; those without a row are grids of points."""

STEPS = {
    "Q4_0": 1.0, "Q5_0": 1.0, "Q4_1": 0.5, "Q5_1": 0.5, "Q8_0": 0.5, "IQ4_NL": NONLINEAR_GAP, "IQ4_XS": NONLINEAR_GAP,
}  # fmt: skip
"""Steps that a value may be off: half of one if rounded, one where the code of the other sign is missing."""

SEARCHED_STEPS, SEARCHED = 2.0, 1.25
"""Steps that a value of a k-quant may be off, and the margin of encodings that search for the best scale: it may cut off the
largest values of a block, by an amount that has no bound in terms of steps alone. Found were 1.05 without the margin."""
