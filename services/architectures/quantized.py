"""Refusal of checkpoints that are stored quantized, by the method's name and with the original to fetch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.architectures.family import ModelClass
from services.architectures.mixtures import MixtureClass
from services.errors import UnsupportedFormat, UnsupportedOption
from services.files.front_matter import front_matter
from services.files.json_file import Json

METHODS: Mapping[str, str] = {
    "gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8", "mxfp4": "MXFP4", "aqlm": "AQLM", "hqq": "HQQ",
    "eetq": "EETQ", "compressed-tensors": "compressed-tensors", "compressed_tensors": "compressed-tensors",
}  # fmt: skip
"""Display names of the values of `quant_method`; any other is shown as it is."""

KEYS = ("quantization_config", "compression_config")
"""Keys of `config.json`; the second is that of compressed-tensors until 2024."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def quantization_of(config: Json) -> Mapping[str, Any] | None:
    """Returns the quantization that a `config.json` states for the model or its text model, None if there is none."""
    for values in (config, config.get("text_config")):
        found = [values[key] for key in KEYS if values.get(key)] if isinstance(values, Mapping) else []
        if found:
            return found[0] if isinstance(found[0], Mapping) else {}
    return None


def is_four_bit(quantization: Mapping[str, Any]) -> bool:
    """Returns True for weights that bitsandbytes has stored in 4 bits."""
    method = quantization.get("quant_method", "bitsandbytes")
    return method == "bitsandbytes" and bool(quantization.get("load_in_4bit"))


def check_quantization(config: Json, folder: Path, *, dequantized: bool) -> bool:
    """Returns True if the weights are stored in 4 bits by bitsandbytes and may be dequantized, False if they are stored in full.

    Args:
        dequantized: 4 bits by bitsandbytes are accepted.

    Raises:
        UnsupportedFormat: The weights are quantized in another way, or may not be dequantized.
    """
    found = quantization_of(config)
    if found is None:
        return False
    four_bit = is_four_bit(found)
    if four_bit and dequantized:
        return True
    original = original_of(config, folder)
    fetch = f"Fetch the original, {original}," if original else "Fetch the model that it was quantized from"
    ways = '; for a merge, base_precision "dequantized" takes it as it is' if four_bit else ""
    raise UnsupportedFormat(
        f"config.json has a quantization_config: the weights of {folder.name} are stored quantized, {_shown(found)}, and are not those "
        "that were trained.",
        f"{fetch} and use it instead{ways}.",
    )


def check_roundable(model_class: ModelClass, name: str) -> None:
    """Refuses a base whose weights cannot be rounded to 4 bits as training has seen them.

    Raises:
        UnsupportedOption: It is a mixture of experts.
    """
    if isinstance(model_class, MixtureClass):
        raise UnsupportedOption(
            f"{name} is a mixture of experts: which of its weights were in 4 bits depends on the version of transformers that trained the "
            "adapter.",
            'Leave base_precision at "original", and compare_precisions out.',
        )


def original_of(config: Json, folder: Path) -> str | None:
    """Returns the id on the Hub of the model that a quantized one was made from, if its card or configuration names it."""
    stated = front_matter(folder).get("base_model")
    candidates = [*(stated if isinstance(stated, list) else [stated]), config.get("_name_or_path")]
    return next((c for c in candidates if isinstance(c, str) and REPOSITORY.fullmatch(c)), None)


def without_quantization(config: Json) -> Json:
    """Returns a `config.json` without what it says about quantization."""
    kept = {key: value for key, value in config.items() if key not in KEYS}
    return {
        k: without_quantization(v) if k == "text_config" and isinstance(v, dict) else v
        for k, v in kept.items()
    }


def _shown(quantization: Mapping[str, Any]) -> str:
    method = str(
        quantization.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in quantization else "unknown")
    )
    bits = quantization.get("bits") or quantization.get("num_bits")
    if method == "bitsandbytes":
        bits = 4 if quantization.get("load_in_4bit") else 8
    return f"quant_method {METHODS.get(method, method)!r}" + (
        f" in {bits} bits" if isinstance(bits, int) else ""
    )
