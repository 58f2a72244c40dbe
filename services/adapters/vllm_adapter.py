"""Adapters that vLLM applies to their base while it runs; all others are merged into a copy first."""

from collections.abc import Sequence

from services.adapters.adapter import Adapter
from services.adapters.stack import Stack
from services.kinds.shared import AdapterChoice

LAYERS = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
"""Layers whose low-rank pairs vLLM applies."""


def merge_reason(choices: Sequence[AdapterChoice], stack: Stack, rank_limit: int) -> str | None:
    """Returns the reason for which vLLM needs a merged copy, None if it applies the only adapter to its base.

    Args:
        choices: Adapters of a request, at least one; `stack` describes them.
        rank_limit: Largest rank of an adapter that is not merged.
    """
    if len(choices) > 1:
        return f"it applies one adapter to an output, and the request has {len(choices)}"
    (choice,), (adapter,) = choices, stack.adapters
    if choice.scale != 1:
        return f"it does not scale an adapter, and the request scales {adapter.name} by {choice.scale:g}"
    if stack.tokenizer_folder == adapter.folder:
        return f"it uses the tokenizer of the base, and {adapter.name} brings another one"
    return _reason(adapter, rank_limit)


def _reason(adapter: Adapter, rank_limit: int) -> str | None:
    name, tuner = adapter.name, str(adapter.config.get("peft_type"))
    others = sorted({pair.module.rsplit(".", 1)[-1] for pair in adapter.pairs.values()} - LAYERS)
    rank = max((pair.rank for pair in adapter.pairs.values()), default=0)
    reasons = (
        (
            adapter.replaced,
            f"it takes low-rank pairs alone, and {name} replaces {len(adapter.replaced)} tensors",
        ),
        (tuner != "LORA", f"it takes LoRA alone, and {name} is of type {tuner}"),
        (adapter.layers, f"it does not have DoRA, which {name} uses"),
        (adapter.rows, f"it does not take trained rows of tokens, which {name} has"),
        (adapter.packs, f"it does not take adapters of experts, and {name} is one"),
        (others, f"it does not change {', '.join(others)}, and {name} does"),
        (rank > rank_limit, f"{name} has rank {rank}, and VLLM_ADAPTER_RANK is {rank_limit}"),
    )
    return next((reason for applies, reason in reasons if applies), None)
