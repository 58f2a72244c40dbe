"""Adapters on a loaded base, as the engine applies them: read from their files by the merge's own rules."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from services.adapters.stack import Stack
from services.adapters.unmerged import low_rank_pairs, merge_reason, own_token_tensors, unmerged_elements
from services.architectures.checkpoint_reader import read_checkpoint
from services.checkpoints.tensor_reader import TORCH_DTYPES, TensorReader, check_finite
from services.files.tensors import TensorHeader
from services.generate import ChatTemplate, Engine, LoadedModel
from services.generate.adapter_stack import AdapterStack, Factors, LoadedAdapter
from services.generate.guide import GuideMaker
from services.generate.loading import check_rows
from services.merge import ScaledAdapter, changes_of, merged_blocks, scaled_stack
from services.models.store import ModelStore
from services.preflight.tokenize import TokenizerSource
from worker.inference.model_key import ModelKey, Stamp, folder_stamp
from worker.inference.tokenizer_cache import tokenizer_of

KEPT_DESCRIPTIONS = 256
"""Stacks whose headers stay read: another scale of the same adapters needs none of their files."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter of a request: the state of its files, and its scale."""

    name: str
    stamp: Stamp
    scale: float


@dataclass(frozen=True, slots=True)
class StackDescription:
    """A stack on a base, from headers: how it fits, and the reason why it needs a merged copy, if it does."""

    stack: Stack
    reason: str | None
    elements: int


def possible_key(key: ModelKey, store: ModelStore) -> ModelKey:
    """Returns the key, with merged adapters if they cannot be applied unmerged. Raises as `describe_stack`."""
    if key.is_stack and describe_stack(key, store).reason is not None:
        return replace(key, unmerged=False)
    return key


def describe_stack(key: ModelKey, store: ModelStore) -> StackDescription:
    """Returns the description of a key's adapters, read unless the same files were before.

    Raises:
        ModelNotFound: a folder does not exist.
        GraftwerkError: see the checks of `merge`.
    """
    files = tuple((name, store.path(name), stamp) for name, stamp in key.files)
    return _described(store.path(key.model), key.stamp, files)


@lru_cache(KEPT_DESCRIPTIONS)
def _described(
    base: Path, _base_stamp: Stamp, adapters: tuple[tuple[str, Path, Stamp], ...]
) -> StackDescription:
    stack, _ = scaled_stack(read_checkpoint(base), [(name, folder, 1.0) for name, folder, _ in adapters])
    reason = merge_reason(stack)
    return StackDescription(stack, reason, unmerged_elements(stack) if reason is None else 0)


class AdapterPool:
    """Parts of stacks on one loaded base: each adapter and each tensor of embeddings is in memory once.

    The pool keeps none of them: they are freed with the last stack that has them.
    """

    def __init__(self, loaded: LoadedModel, engine: Engine) -> None:
        """`engine` is that of the base."""
        self._loaded, self._engine = loaded, engine
        self._adapters: WeakValueDictionary[object, LoadedAdapter] = WeakValueDictionary()
        self._tensors: WeakValueDictionary[object, torch.Tensor] = WeakValueDictionary()
        self._guides_of: WeakValueDictionary[object, GuideMaker] = WeakValueDictionary()

    def fits(self, stack: Stack) -> bool:
        """Returns True if each module that the stack changes is a linear module of the loaded base."""
        pairs = [item for adapter in stack.adapters for item in low_rank_pairs(stack, adapter).items()]
        return all(self._is_linear(path, pair.shape) for path, pair in pairs)

    def load(self, stack: Stack, key: ModelKey) -> tuple[LoadedModel, AdapterStack]:
        """Returns the base with the stack's tokenizer, and the stack; parts that other stacks have are not read again.

        Raises:
            NonFiniteTensor: an adapter, or the sum of an embedding and its change, holds NaN or infinity.
            VocabularyMismatch: the tokenizer has more tokens than the embeddings have rows.
            UnreadableTokenizer: a file of the tokenizer is damaged.
        """
        adapters = [NamedAdapter(name, stamp, scale) for name, scale, stamp in key.adapters]
        with TensorReader() as reader, torch.inference_mode():
            parts = _PartReader(reader, stack, adapters)
            low_rank = [(self._adapter(parts, number), named.scale) for number, named in enumerate(adapters)]
            own = {name: self._own_tensor(parts, name) for name in own_token_tensors(stack)}
        embeddings = own.get(stack.base.embeddings)
        head = embeddings if stack.base.head is None else own.get(stack.base.head)
        rows = self._loaded.rows if embeddings is None else embeddings.shape[0]
        view, guides = self._with_tokenizer(stack, rows)
        applied = AdapterStack(
            identity=_identity(adapters), tokenizer=view.tokenizer, guides=guides, rows=rows,
            adapters=tuple(low_rank), embeddings=embeddings, head=head,
        )  # fmt: skip
        return replace(view, rows=rows, size_bytes=sum(applied.parts.values())), applied

    def free(self, adapters: Sequence[LoadedAdapter]) -> None:
        """Lets the engine release adapters that no stack has any more."""
        self._engine.free(adapters)

    def _is_linear(self, path: str, shape: tuple[int, ...]) -> bool:
        try:
            module = self._loaded.model.get_submodule(path)
        except AttributeError:
            return False
        return isinstance(module, nn.Linear) and tuple(module.weight.shape) == shape

    def _adapter(self, parts: "_PartReader", number: int) -> LoadedAdapter:
        named = parts.adapters[number]
        key = (named.name, named.stamp)
        found = self._adapters.get(key)
        if found is None:
            found = self._adapters[key] = parts.adapter(self._loaded.model, number)
        return found

    def _own_tensor(self, parts: "_PartReader", name: str) -> torch.Tensor:
        model: Any = self._loaded.model
        is_head = name == parts.stack.base.head
        weight = (model.get_output_embeddings() if is_head else model.get_input_embeddings()).weight
        key = parts.key(name)
        found = self._tensors.get(key)
        if found is None:
            found = self._tensors[key] = parts.own_tensor(name, weight)
        return found

    def _with_tokenizer(self, stack: Stack, rows: int) -> tuple[LoadedModel, GuideMaker]:
        """Returns the base with the tokenizer and the chat template that a merged copy would have, and the guides."""
        if stack.tokenizer_folder == stack.base.folder:
            return self._loaded, self._engine.guides
        found = tokenizer_of(TokenizerSource(stack.tokenizer_folder, stack.base.folder))
        check_rows(found.tokenizer, rows, stack.tokenizer_folder.name)
        key = (stack.tokenizer_folder, folder_stamp(stack.tokenizer_folder), rows)
        guides = self._guides_of.get(key)
        if guides is None:
            guides = self._guides_of[key] = GuideMaker(found.tokenizer, rows)
        text = found.facts.chat_template
        template = None if text is None else ChatTemplate(text)
        return replace(self._loaded, tokenizer=found.tokenizer, chat_template=template), guides


@dataclass(frozen=True, slots=True)
class _PartReader:
    """The parts of one stack, read from its adapters' files."""

    reader: TensorReader
    stack: Stack
    adapters: Sequence[NamedAdapter]

    def adapter(self, model: nn.Module, number: int) -> LoadedAdapter:
        """Returns the low-rank changes of one adapter at scale 1, in the dtypes and on the devices of the model's weights."""
        bound = self.stack.adapters[number]
        factors = {}
        for path, pair in low_rank_pairs(self.stack, bound).items():
            weight: Any = model.get_submodule(path).weight
            a, b = self._checked(bound.name, pair.a), self._checked(bound.name, pair.b)
            scaled = (b.float() * pair.scaling).t().contiguous()
            factors[path] = Factors(_copy(a, weight), _copy(scaled, weight))
        return LoadedAdapter(bound.name, factors)

    def own_tensor(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Returns a tensor with one row per token as the merge computes and rounds it, in the weight's dtype."""
        base = self.stack.base
        dtype = TORCH_DTYPES[base.tensors[name].dtype]
        scaled = [
            ScaledAdapter(adapter, named.scale)
            for adapter, named in zip(self.stack.adapters, self.adapters, strict=True)
        ]
        changes = changes_of(scaled, name)
        blocks = merged_blocks(self.reader, base.tensors[name], changes, dtype, once=False)
        return _copy(torch.cat(list(blocks)), weight)

    def key(self, name: str) -> object:
        """Returns all that the values of a tensor depend on; a scale counts only where it scales something."""
        changes = []
        for adapter, named in zip(self.stack.adapters, self.adapters, strict=True):
            source = adapter.same.get(name, name)
            if source in adapter.changed:
                scale = named.scale if source in adapter.pairs else 1.0
                changes.append((source, named.name, named.stamp, scale))
        return (name, *changes)

    def _checked(self, adapter: str, header: TensorHeader) -> torch.Tensor:
        tensor = self.reader.view(header)
        check_finite(f"{adapter}: {header.name}", tensor)
        return tensor


def _copy(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return tensor.to(device=weight.device, dtype=weight.dtype, copy=True)


def _identity(adapters: Sequence[NamedAdapter]) -> str:
    files = [(adapter.name, adapter.stamp, adapter.scale) for adapter in adapters]
    return hashlib.sha256(repr(files).encode()).hexdigest()
