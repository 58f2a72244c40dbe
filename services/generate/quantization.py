"""Weights in 8 or 4 bits by bitsandbytes: LLM.int8() and NF4, on GPUs and on CPUs.

Only the layers' matrices are quantised; embeddings, head and norms keep their dtype. LLM.int8() (Dettmers and
others, NeurIPS 2022) also rounds activations, and reads columns with an activation above 6 in 16 bits. It looks for
these columns over a whole batch: the one place where a neighbour can change what a job gets.
"""

import importlib
import importlib.util
import logging
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from services.errors import UnsupportedOption

Quantization = Literal["8bit", "4bit"]

NF4_BITS = 4.5
"""Four bits, and a float32 scale for each block of 64 (Dettmers and others, QLoRA, NeurIPS 2023)."""


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    """What `from_pretrained` needs to load in 8 or 4 bits and to compute in `dtype`.

    Raises:
        UnsupportedOption: bitsandbytes is missing, or does not run on this machine.
    """
    _refuse_without_bitsandbytes(quantization)
    make: Any = BitsAndBytesConfig
    if quantization == "8bit":
        # It says for every product of every layer that it casts to float16, which is how the method works.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return make(load_in_8bit=True)
    return make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def _refuse_without_bitsandbytes(quantization: Quantization) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UnsupportedOption(
            f"Loading in {quantization} needs the package bitsandbytes, which is not installed in this worker.",
            'Install it with `pip install "graftwerk[quantization]"`, or leave quantization out.',
        )
    try:
        importlib.import_module("bitsandbytes")
    except (ImportError, OSError, RuntimeError) as error:
        raise UnsupportedOption(
            f"Loading in {quantization} needs the package bitsandbytes, which does not start here: {error}",
            "Install a release of it that supports this machine, or leave quantization out.",
        ) from error


def quantized_bytes(parameters: int, kept: int, quantization: Quantization, *, width: int) -> int:
    """Bytes of a model of so many parameters, `kept` of which keep their dtype of `width` bytes each."""
    bits = 8.0 if quantization == "8bit" else NF4_BITS
    return kept * width + int((parameters - kept) * bits / 8)


def held_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's parameters, the scales of quantised ones included."""
    return sum(_bytes(tensor) + _scale_bytes(tensor) for tensor in model.parameters())


def _scale_bytes(parameter: Any) -> int:
    scales = getattr(parameter, "SCB", None)
    if scales is None:
        scales = getattr(getattr(parameter, "quant_state", None), "absmax", None)
    return 0 if scales is None else _bytes(scales)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
