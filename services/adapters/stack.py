"""Check of a stack of adapters: do they fit a base in the order given, and if not, why, and which order fits?

Projections commute up to rounding, replaced tensors do not: the last adapter's embeddings win. So the order must be
the one in which the vocabulary has grown: it may not shrink, and each tokenizer must continue the one before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path

from services.adapters.adapter import Adapter
from services.adapters.binding import bind, share, tie, unties
from services.architectures.checkpoint import Checkpoint
from services.architectures.json_vocabulary import read_json_vocabulary
from services.architectures.key_map import Shape
from services.architectures.vocabulary import Vocabulary
from services.errors import (
    AdapterMismatch,
    GraftwerkError,
    InvalidRequest,
    UnknownAdapterKey,
    UnsupportedAdapter,
    VocabularyMismatch,
    WrongAdapterOrder,
)

MAX_REORDERED = 6
"""Largest number of adapters for which other orders are tried."""


@dataclass(frozen=True, slots=True)
class Stack:
    """State of a base after some adapters: rows of the embeddings, the tokenizer and its folder.

    `base` has a head of its own if an adapter unties it; `adapters` have the names of the base's tensors.
    """

    vocabulary_rows: int
    vocabulary: Vocabulary | None
    tokenizer_folder: Path
    warnings: tuple[str, ...] = ()
    base: Checkpoint = field(kw_only=True, compare=False, repr=False)
    adapters: tuple[Adapter, ...] = field(default=(), kw_only=True, compare=False, repr=False)


def check_stack(base: Checkpoint, adapters: Sequence[Adapter]) -> Stack:
    """Returns the state of the base after merging the adapters in this order.

    Raises:
        WrongAdapterOrder: They fit in another order only, which is named.
        AdapterMismatch: The shapes do not fit in any order.
        VocabularyMismatch: The vocabularies do not fit in any order.
        UnknownAdapterKey: An adapter changes a tensor that the base does not have.
        UnsupportedAdapter: An adapter changes a tied head in a way that is not understood, or a transposed weight.
        InvalidRequest: The same adapter is named twice.
    """
    digests = [adapter.weights.resolve() for adapter in adapters]
    if len(set(digests)) != len(digests):
        names = ", ".join(adapter.name for adapter in adapters)
        raise InvalidRequest(
            f"An adapter is named twice in {names}.", "Name each adapter once; use its scale instead."
        )
    try:
        return _stacked(base, adapters)
    except (VocabularyMismatch, AdapterMismatch) as error:
        order = _fitting_order(base, adapters)
        if order is None:
            raise
        names = ", ".join(adapter.name for adapter in order)
        raise WrongAdapterOrder(
            f"The adapters do not fit in the order {', '.join(a.name for a in adapters)}: {error.message}",
            f"The order that fits is: {names}.",
            order=[adapter.name for adapter in order],
        ) from error


def check_scales(scaled: Sequence[tuple[Adapter, float]]) -> None:
    """Refuses a scale other than 1 for adapters other than LoRA.

    Raises:
        UnsupportedAdapter: A scale was given for another type of adapter.
    """
    for adapter, scale in scaled:
        if scale != 1 and adapter.layers:
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} is of type {adapter.config.get('peft_type')} and was given the scale {scale}: only "
                "plain LoRA changes can be scaled.",
                "Leave the scale at 1.",
            )


def merged_tensors(base: Checkpoint, adapters: Sequence[Adapter]) -> dict[str, tuple[str, Shape]]:
    """Returns dtype and shape of every tensor after the adapters: the base's dtype, the last replacing adapter's shape.

    Args:
        base: The base of a `Stack`.
        adapters: The adapters of a `Stack`.
    """
    tensors = base.stored
    for adapter in adapters:
        replaced = {name: adapter.replaced.get(adapter.same.get(name, name)) for name in tensors}
        tensors |= {
            name: (tensors[name][0], found.shape) for name, found in replaced.items() if found is not None
        }
    return tensors


def _fitting_order(base: Checkpoint, adapters: Sequence[Adapter]) -> Sequence[Adapter] | None:
    if not 2 <= len(adapters) <= MAX_REORDERED:
        return None
    for order in permutations(adapters):
        try:
            _stacked(base, order)
        except GraftwerkError:
            continue
        return order
    return None


def _stacked(base: Checkpoint, adapters: Sequence[Adapter]) -> Stack:
    stack = Stack(base.config.vocab_size, base.vocabulary, base.tokenizer_folder, base=base)
    for adapter in adapters:
        stack = _add(stack, adapter)
    return stack


def _add(stack: Stack, adapter: Adapter) -> Stack:
    adapter = bind(stack.base, adapter)
    if unties(stack.base, adapter):
        shared = tuple(share(stack.base, other) for other in stack.adapters)
        stack = replace(stack, base=stack.base.untied, adapters=shared)
    adapter = tie(stack.base, adapter)
    base = stack.base
    _check_names(base, adapter)
    rows = _rows_after(base, stack, adapter)
    _check_shapes(base, adapter, rows)
    stack = replace(stack, vocabulary_rows=rows, adapters=(*stack.adapters, adapter))
    if adapter.vocabulary is None:
        return stack
    earlier = _earlier_vocabulary(stack, adapter.vocabulary)
    _check_vocabulary(stack, adapter, earlier)
    if _only_repeats(adapter.vocabulary, earlier):
        return stack
    if rows > adapter.vocabulary.size:
        warning = (
            f"Adapter {adapter.name}: its embeddings have {rows} rows and its tokenizer {adapter.vocabulary.size} tokens; "
            f"{rows - adapter.vocabulary.size} rows are padding."
        )
        stack = replace(stack, warnings=(*stack.warnings, warning))
    return replace(stack, vocabulary=adapter.vocabulary, tokenizer_folder=adapter.folder)


def _check_names(base: Checkpoint, adapter: Adapter) -> None:
    for tensor in sorted(adapter.changed):
        if tensor in base.tensors:
            continue
        raise UnknownAdapterKey(
            f"Adapter {adapter.name} changes {tensor!r}, which the base {base.folder.name}, a "
            f"{base.config.model_class.architecture}, does not have ({base.config.num_hidden_layers} layers).",
            "The adapter was trained on another base: use that one.",
        )


def _rows_after(base: Checkpoint, stack: Stack, adapter: Adapter) -> int:
    """Returns the rows of the embeddings after this adapter; embed_tokens and lm_head must agree on them."""
    present = base.token_tensors
    brought = {name: adapter.replaced[name].shape[0] for name in present if name in adapter.replaced}
    rows = max(brought.values(), default=stack.vocabulary_rows)
    if rows < stack.vocabulary_rows:
        raise VocabularyMismatch(
            f"Adapter {adapter.name} has embeddings of {rows} rows; before it there are {stack.vocabulary_rows}, so the "
            "vocabulary would shrink.",
            "It belongs before the adapter that extends the vocabulary, or to another base.",
        )
    after = {name: brought.get(name, stack.vocabulary_rows) for name in present}
    if len(set(after.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in after.items())
        raise VocabularyMismatch(
            f"After adapter {adapter.name} the rows would differ: {found}.",
            "An adapter that extends the vocabulary must bring embed_tokens and lm_head: it is incomplete.",
        )
    head_bias = base.head_name.removesuffix("weight") + "bias"
    if rows > stack.vocabulary_rows and head_bias in base.tensors.keys() - adapter.replaced.keys():
        raise VocabularyMismatch(
            f"Adapter {adapter.name} extends the vocabulary from {stack.vocabulary_rows} to {rows} rows; the base has a "
            f"{head_bias!r}, which the adapter does not extend.",
            "The adapter is incomplete: save it again with lm_head in modules_to_save.",
        )
    if rows > stack.vocabulary_rows and adapter.vocabulary is None:
        raise VocabularyMismatch(
            f"Adapter {adapter.name} extends the vocabulary from {stack.vocabulary_rows} to {rows} rows and has no "
            "tokenizer.model or tokenizer.json.",
            "Add the tokenizer files that were published with the adapter.",
        )
    return rows


def _check_shapes(base: Checkpoint, adapter: Adapter, rows: int) -> None:
    def wanted(name: str) -> tuple[int, ...]:
        shape = base.tensors[name].shape
        return (rows, *shape[1:]) if name in base.token_tensors else shape

    changes: dict[str, tuple[int, ...]] = {name: pair.shape for name, pair in adapter.pairs.items()}
    changes |= {name: tensor.shape for name, tensor in adapter.replaced.items()}
    for name, rows_of in adapter.rows.items():
        vocabulary, *rest = wanted(name)
        if max(rows_of.indices, default=0) >= vocabulary or list(rows_of.rows.shape[1:]) != rest:
            raise AdapterMismatch(
                f"Adapter {adapter.name} trains rows up to {max(rows_of.indices, default=0)} of {name!r} in shape "
                f"{list(rows_of.rows.shape)}; in the base {base.folder.name} it is {list(wanted(name))}.",
                "The adapter was trained on another base: use that one.",
            )
    for name, shape in changes.items():
        if shape != wanted(name):
            raise AdapterMismatch(
                f"Adapter {adapter.name} changes {name!r} as a tensor of shape {list(shape)}; in the base "
                f"{base.folder.name} it is {list(wanted(name))}.",
                "The adapter was trained on a base of another size: use that one.",
            )


def _earlier_vocabulary(stack: Stack, vocabulary: Vocabulary) -> Vocabulary | None:
    """Returns the vocabulary before an adapter, from the file of the same name if there is one.

    A `tokenizer.json` next to a `tokenizer.model` has the added tokens too, and may write pieces differently.
    """
    same = stack.tokenizer_folder / "tokenizer.json"
    if vocabulary.file == "tokenizer.json" and same.is_file():
        return read_json_vocabulary(same)
    return stack.vocabulary


def _only_repeats(vocabulary: Vocabulary, earlier: Vocabulary | None) -> bool:
    """Returns True for a `tokenizer.json` without new tokens: trainers save the base's own, as their library writes it."""
    return vocabulary.file == "tokenizer.json" and earlier is not None and vocabulary.size <= earlier.size


def _check_vocabulary(stack: Stack, adapter: Adapter, earlier: Vocabulary | None) -> None:
    vocabulary = adapter.vocabulary
    assert vocabulary is not None
    if vocabulary.size > max(stack.vocabulary_rows, earlier.size if earlier else 0):
        raise VocabularyMismatch(
            f"Adapter {adapter.name} has a tokenizer of {vocabulary.size} tokens; the embeddings have "
            f"{stack.vocabulary_rows} rows.",
            "The adapter's embeddings are missing, or an adapter that extends the vocabulary must come before it.",
        )
    if earlier is None or vocabulary.continues(earlier):
        return
    at = vocabulary.first_difference(earlier)
    if at == vocabulary.size:
        raise VocabularyMismatch(
            f"Adapter {adapter.name} has a tokenizer of {vocabulary.size} tokens; before it there are {earlier.size}, "
            "so the vocabulary would shrink.",
            "It belongs before the adapter that extends the vocabulary, or to another base.",
        )
    raise VocabularyMismatch(
        f"Adapter {adapter.name} has a tokenizer whose token {at} is {_piece(vocabulary, at)}; before it that is "
        f"{_piece(earlier, at)}, so the embeddings would be taken for other tokens.",
        "The adapter was trained on a base with another tokenizer: use that one.",
    )


def _piece(vocabulary: Vocabulary, at: int) -> str:
    return repr(vocabulary.pieces[at].decode("utf-8", "replace")) if at < len(vocabulary.pieces) else "absent"
