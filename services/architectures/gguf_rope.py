"""Rotary scaling of a GGUF file: its metadata, and Llama 3's frequency factors, in Hugging Face's terms.

llama.cpp keeps Llama 3's scaling as one factor per frequency (ggml-org/llama.cpp `convert_hf_to_gguf.py`,
LlamaModel.generate_extra_tensors). A parameter set is accepted only if it gives every factor of the file.
"""

import math
import struct
from collections.abc import Sequence

from services.architectures.config import LLAMA3_ROPE
from services.architectures.gguf_values import ArchitectureValues, shortest_decimal
from services.errors import ShapeMismatch, UnsupportedFormat
from services.files.gguf_files import GgufModel
from services.files.json_file import Json

FACTORS = "rope_freqs.weight"

LOW, HIGH, CONTEXT = 1.0, 4.0, 8192
"""Numbers of `LLAMA3_ROPE`."""

TOLERANCE = 1e-4
"""Largest relative difference of a factor: they were computed in float32."""


def rope_scaling(values: ArchitectureValues, model: GgufModel, head_dim: int, theta: float) -> Json | None:
    """Returns `rope_scaling` of a `config.json`, None without a scaling.

    Raises:
        UnsupportedFormat: The scaling is of another type, or the factors are not those of a known parameter set.
        ShapeMismatch: There is not one factor for each frequency.
    """
    kind = values.text("rope.scaling.type") or "none"
    if FACTORS in model.tensors:
        values.expect("rope.scaling.type", "none")
        return llama3_scaling(read_factors(model, FACTORS, head_dim // 2), head_dim, theta, model.name)
    if kind == "none":
        return None
    scaling: Json = {"rope_type": kind, "factor": values.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = values.size("rope.scaling.original_context_length")
    elif kind != "linear":
        raise UnsupportedFormat(
            f"{model.name} has a rotary scaling of type {kind!r}; taken are 'linear', 'yarn' and Llama 3's factors.",
            "Use the model's Hugging Face files.",
        )
    values.expect("rope.scaling.finetuned", True, False)
    return scaling


def read_factors(model: GgufModel, name: str, count: int) -> Sequence[float]:
    """Returns the values of a float32 vector.

    Raises:
        ShapeMismatch: It has another shape or type.
    """
    tensor = model.tensors[name]
    if tensor.shape != (count,) or tensor.encoding != "F32":
        raise ShapeMismatch(
            f"{model.name}: {name!r} is {list(tensor.shape)} {tensor.encoding}; needed is {[count]} F32.",
            "The file is damaged or of another model: fetch it again.",
        )
    raw = model.raw(name)
    with raw.path.open("rb") as file:
        file.seek(raw.offset)
        return struct.unpack(f"<{count}f", file.read(4 * count))


def llama3_scaling(factors: Sequence[float], head_dim: int, theta: float, file: str) -> Json | None:
    """Returns Llama 3's scaling that gives these factors, None if all are 1.

    The lowest frequency is divided by the whole factor; the other numbers are those of every published model.

    Raises:
        UnsupportedFormat: The factors are others.
    """
    if all(factor == 1 for factor in factors):
        return None
    factor = shortest_decimal(factors[-1])
    known = math.isfinite(factor) and factor >= 1
    expected = llama3_factors(factor, head_dim, theta) if known else [math.nan] * len(factors)
    if not all(math.isclose(*pair, rel_tol=TOLERANCE) for pair in zip(factors, expected, strict=True)):
        raise UnsupportedFormat(
            f"{file}: {FACTORS!r} holds frequency factors, the last {factor:g}, that Llama 3's scaling with low factor "
            f"{LOW:g}, high factor {HIGH:g} and {CONTEXT} positions does not give.",
            "Use the model's Hugging Face files, which name their scaling.",
        )
    return {**LLAMA3_ROPE, "factor": factor}


def llama3_factors(factor: float, head_dim: int, theta: float) -> list[float]:
    """Returns the factor of each frequency (meta-llama/llama-models `model.py`, apply_scaling)."""
    factors = []
    for dimension in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (dimension / head_dim)
        smooth = min(max((CONTEXT / wavelength - LOW) / (HIGH - LOW), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
