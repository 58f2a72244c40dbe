"""Preflight of requests that vLLM answers: options that it does not have, adapters that it does not apply."""

from services.adapters.stack import Stack
from services.adapters.vllm_adapter import merge_reason
from services.backend import own_vllm_fields
from services.errors import UnsupportedOption
from services.kinds.generate import GenerateRequest
from services.kinds.shared import Quantization


def check_vllm(request: GenerateRequest, stack: Stack, adapter_rank: int) -> list[str]:
    """Returns the warnings of a request; `adapter_rank` is the largest rank of an adapter that is not merged.

    Raises:
        UnsupportedOption: vLLM does not have an option of it; the message names it.
    """
    check_vllm_loading(request.quantization, request.rope_alpha)
    own_vllm_fields(request.sampling)
    reason = merge_reason(request.adapters, stack, adapter_rank) if request.applies_unmerged else None
    if reason is None:
        return []
    return [
        f"vLLM is started with a merged copy of {request.model} and its adapters, which takes time and disk space: {reason}."
    ]


def check_vllm_loading(quantization: Quantization | None, rope_alpha: float | None) -> None:
    """Refuses ways to load a model that vLLM does not have. Raises UnsupportedOption."""
    for name, value in (("quantization", quantization), ("rope_alpha", rope_alpha)):
        if value is not None:
            raise UnsupportedOption(
                f"vLLM does not load a model with {name}; the request sets it to {value}.",
                f"Leave {name} out, or have the engine graftwerk generate.",
            )
