"""Weights in 8 or 4 bits by bitsandbytes: LLM.int8() and NF4, on GPUs and on CPUs.

Only the layers' matrices are quantized; embeddings, head and norms keep their dtype. LLM.int8() (Dettmers et al., NeurIPS
2022) also rounds activations, and computes columns with an activation above 6 in 16 bits. It selects these columns
over a whole batch: the only case in which another sequence of a batch can change an output.
"""

import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from services.checkpoints.four_bit import require_bitsandbytes
from services.errors import UnsupportedOption
from services.kinds.shared import Quantization

BLOCK = 64
"""Values with a scale of their own in 4 bits."""

NF4_BITS = 4.5
"""Four bits, and a float32 scale per block of 64 (Dettmers et al., QLoRA, NeurIPS 2023)."""


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> Any:
    """Returns the configuration with which `from_pretrained` loads in 8 or 4 bits and computes in `dtype`.

    Raises:
        UnsupportedOption: bitsandbytes is missing, or does not run on this machine.
    """
    instead = ", or leave quantization out"
    require_bitsandbytes(f"Loading in {quantization}", instead, instead)
    make: Any = BitsAndBytesConfig
    if quantization == "8bit":
        # It logs for every product of every layer that it casts to float16, which is part of the method.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return make(load_in_8bit=True)
    return make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


def keep_arithmetic(model: PreTrainedModel) -> None:
    """Makes matrices in 4 bits on a CPU compute in the dtype that was chosen.

    With AVX-512 for bfloat16, bitsandbytes 0.50 would round activations and scales to bfloat16; and with AVX-512 it takes the wrong
    scales where a block goes on in the next row.

    Raises:
        UnsupportedOption: The rows of a matrix on a CPU are not whole blocks.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu") or module.weight.device.type != "cpu":
            continue
        module.support_avx512bf16_for_cpu = False
        if module.in_features % BLOCK:
            raise UnsupportedOption(
                f"{name} has rows of {module.in_features} values; in 4bit on a CPU they must be whole blocks of {BLOCK}.",
                "Use 8bit, or leave quantization out.",
            )


def quantized_bytes(parameters: int, kept: int, quantization: Quantization, *, width: int) -> int:
    """Returns the bytes of a model with this number of parameters; `kept` of them keep their dtype of `width` bytes."""
    bits = 8.0 if quantization == "8bit" else NF4_BITS
    return kept * width + int((parameters - kept) * bits / 8)


def held_bytes(model: PreTrainedModel) -> int:
    """Returns the bytes of a model's parameters, including the scales of quantized ones."""
    return sum(_bytes(tensor) + _scale_bytes(tensor) for tensor in model.parameters())


def _scale_bytes(parameter: Any) -> int:
    scales = getattr(parameter, "SCB", None)
    if scales is None:
        scales = getattr(getattr(parameter, "quant_state", None), "absmax", None)
    return 0 if scales is None else _bytes(scales)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
