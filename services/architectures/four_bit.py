"""Weights in 4 bits by bitsandbytes: as a checkpoint stores them, or as training with a 4-bit base sees them.

A stored weight is accompanied by its scales (`absmax`), the 16 values of its codes (`quant_map`), with double quantization also the
scales' own scales and values, and a JSON text of its shape, dtype and block size (bitsandbytes `functional.py`, QuantState.as_dict
with `packed`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.errors import IncompleteCheckpoint, UnreadableFile
from services.files.json_file import parse_json
from services.files.regular_file import open_regular
from services.files.tensors import DTYPE_CODES, TensorHeader
from services.files.weight_files import Tensors

QUANT_TYPES = ("nf4", "fp4")
STATE = ".quant_state.bitsandbytes__"
STATE_LIMIT_BYTES = 4096
BLOCK_SIZE = 64
"""Weights that share a scale, transformers' and PEFT's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FourBit:
    """Rounding of a weight to 4 bits and back.

    Attributes:
        quant_type: "nf4" or "fp4".
        block_size: Number of weights that share a scale.
        double: The scales are quantized too.
        transposed: The matrix is quantized in the other orientation, as transformers does with a Conv1D.
        stored: The weight and its companions as a file has them, by bitsandbytes' names; empty for a weight that a file
            has in full.
    """

    quant_type: str = "nf4"
    block_size: int = BLOCK_SIZE
    double: bool = True
    transposed: bool = False
    stored: Mapping[str, TensorHeader] = field(default_factory=dict)


def unpacked(found: Tensors) -> tuple[Tensors, dict[str, FourBit]]:
    """Returns the tensors of a checkpoint with each 4-bit weight in its own shape and dtype, and how these are stored.

    Raises:
        IncompleteCheckpoint: A weight lacks one of its companions.
        UnreadableFile: The description of a weight is damaged, or does not fit its bytes.
    """
    states = {name: name.partition(STATE) for name in found if STATE in name}
    weights = {weight: quant_type for weight, _, quant_type in states.values()}
    dense: Tensors = {}
    four_bit: dict[str, FourBit] = {}
    companions = set(states)
    for name, quant_type in weights.items():
        header, how = _unpacked(found, name, quant_type)
        dense[name], four_bit[name] = header, how
        companions |= {f"{name}.{key}" for key in how.stored if key != "weight"}
    return {name: dense.get(name, h) for name, h in found.items() if name not in companions}, four_bit


def _unpacked(found: Tensors, name: str, quant_type: str) -> tuple[TensorHeader, FourBit]:
    state = f"quant_state.bitsandbytes__{quant_type}"
    weight, description = _companion(found, name), _description(_companion(found, f"{name}.{state}"))
    nested = "nested_blocksize" in description
    keys = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if nested else []), state]
    stored = {"weight": weight, **{key: _companion(found, f"{name}.{key}") for key in keys}}
    try:
        shape, block = tuple(description["shape"]), description["blocksize"]
        dtype, inner = DTYPE_CODES[description["dtype"]], description["nested_blocksize"] if nested else 1
        numbers = (*shape, block, inner)
        sensible = all(type(n) is int and 0 < n < 2**31 for n in numbers) and quant_type in QUANT_TYPES
    except (KeyError, TypeError) as error:
        raise _damaged(weight, error) from error
    if not sensible or quant_type != description.get("quant_type"):
        raise _damaged(weight, f"shape {shape}, blocks of {block}, type {description.get('quant_type')}")
    blocks = -(-math.prod(shape) // block)
    wanted = {
        "weight": -(-math.prod(shape) // 2), "absmax": blocks * (1 if nested else 4), "quant_map": 16 * 4,
        "nested_absmax": -(-blocks // inner) * 4, "nested_quant_map": 256 * 4,
    }  # fmt: skip
    for key, header in stored.items():
        if wanted.get(key, header.size_bytes) != header.size_bytes:
            raise _damaged(weight, f"{header.name!r} has {header.size_bytes} bytes instead of {wanted[key]}")
    dense = TensorHeader(name, dtype, shape, weight.path, weight.offset)
    return dense, FourBit(quant_type=quant_type, block_size=block, double=nested, stored=stored)


def _companion(found: Tensors, name: str) -> TensorHeader:
    if name not in found:
        raise IncompleteCheckpoint(
            f"The files hold no tensor {name!r}, which a weight in 4 bits needs.",
            "Fetch the checkpoint again; all its files are needed.",
        )
    return found[name]


def _description(header: TensorHeader) -> Mapping[str, Any]:
    if header.size_bytes > STATE_LIMIT_BYTES:
        raise _damaged(header, f"{header.size_bytes} bytes of description")
    with open_regular(header.path) as file:
        file.seek(header.offset)
        raw = file.read(header.size_bytes)
    try:
        found = parse_json(raw)
    except ValueError as error:
        raise _damaged(header, error) from error
    if not isinstance(found, dict):
        raise _damaged(header, f"a {type(found).__name__} instead of an object")
    return found


def _damaged(header: TensorHeader, reason: object) -> UnreadableFile:
    return UnreadableFile(
        f"{header.path.name}: the description of the 4-bit weight {header.name!r} is damaged ({reason}).",
        "Fetch the file again.",
    )
