"""Stacks that can be applied next to a base's weights, without a merged copy, from headers alone.

LoRA pairs of linear modules stay low-rank products. Embeddings and a head that a stack changes in any other way are held as
tensors of their own. Everything else needs the merge.
"""

import math
from collections.abc import Sequence

from services.adapters.adapter import Adapter
from services.adapters.lora_tensors import LoraPair
from services.adapters.stack import Stack
from services.architectures.checkpoint import Checkpoint


def merge_reason(stack: Stack) -> str | None:
    """Returns the reason why a stack needs a merged copy of its base, as a clause; None if it does not."""
    if any(tensor.four_bit is not None for tensor in stack.base.tensors.values()):
        return f"the base {stack.base.folder.name} is stored in 4 bits"
    reasons = (_reason(stack.base, adapter) for adapter in stack.adapters)
    return next((reason for reason in reasons if reason is not None), None)


def own_token_tensors(stack: Stack) -> Sequence[str]:
    """Returns the names of the embeddings and of the head that a stack holds as tensors of its own."""
    base = stack.base
    head = () if base.head is None else (base.head,)
    changed = [name for name in (base.embeddings,) if any(_changes(a, name) for a in stack.adapters)]
    return [*changed, *(name for name in head if any(_needs_own(a, name) for a in stack.adapters))]


def low_rank_pairs(stack: Stack, adapter: Adapter) -> dict[str, LoraPair]:
    """Returns an adapter's pairs by the path of the module in the text model.

    Those of the embeddings and of a head with more rows than the base's are part of the stack's own tensors.
    """
    base = stack.base
    found = {}
    for name, pair in adapter.pairs.items():
        path = base.config.model_class.text_name(name)
        if path is not None and name != base.embeddings and pair.shape == base.tensors[name].shape:
            found[path.removesuffix(".weight")] = pair
    return found


def unmerged_elements(stack: Stack) -> int:
    """Returns the number of elements that a stack adds to its base in memory."""
    pairs = [pair for adapter in stack.adapters for pair in low_rank_pairs(stack, adapter).values()]
    own = [(stack.vocabulary_rows, *stack.base.tensors[name].shape[1:]) for name in own_token_tensors(stack)]
    return sum(math.prod(half.shape) for pair in pairs for half in (pair.a, pair.b)) + sum(
        map(math.prod, own)
    )


def _changes(adapter: Adapter, name: str) -> bool:
    return adapter.same.get(name, name) in adapter.changed


def _needs_own(adapter: Adapter, head: str) -> bool:
    """Returns True if an adapter changes the head by more than a pair of its own."""
    pair = adapter.pairs.get(head)
    plain = pair is not None and not pair.transposed and not pair.rounded
    others = head in adapter.replaced or head in adapter.rows or head in adapter.same
    return _changes(adapter, head) and (others or not plain)


def _reason(base: Checkpoint, adapter: Adapter) -> str | None:
    if adapter.layers:
        kind = "DoRA" if adapter.config.get("use_dora") else adapter.config.get("peft_type")
        return f"adapter {adapter.name} is of type {kind}"
    tokens = (base.embeddings, base.head_name)
    whole = sorted((adapter.replaced.keys() | adapter.rows.keys()) - {*tokens})
    if whole:
        return f"adapter {adapter.name} replaces {whole[0]!r}"
    odd = sorted(
        name for name, pair in adapter.pairs.items() if name not in tokens and not _is_plain(base, pair, name)
    )
    return f"adapter {adapter.name} changes {odd[0]!r}, which is not a linear module" if odd else None


def _is_plain(base: Checkpoint, pair: LoraPair, name: str) -> bool:
    is_text = base.config.model_class.text_name(name) is not None
    return is_text and pair.expert is None and not pair.transposed and not pair.rounded
