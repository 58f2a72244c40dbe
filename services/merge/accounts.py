"""Changes of a stack of adapters by tensor, and the account that each of them was used."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from services.adapters.adapter import Adapter, read_adapter
from services.adapters.stack import Stack, check_stack
from services.architectures.checkpoint import Checkpoint, TensorSource
from services.checkpoints.tensor_reader import TensorReader
from services.errors import InternalError, UnsupportedAdapter
from services.kinds.merge import AdapterAccount
from services.merge.delta import Change


@dataclass(frozen=True, slots=True)
class ScaledAdapter:
    """Adapter and the factor on its changes; tensors that it replaces are not scaled."""

    adapter: Adapter
    scale: float = 1.0

    def change(self, name: str) -> Change | None:
        """Returns the change of the tensor of this name, None if the adapter leaves it as it is."""
        return Change.by(self.adapter, self.scale, name)


def scaled_stack(
    base: Checkpoint, adapters: Sequence[tuple[str, Path, float]]
) -> tuple[Stack, list[ScaledAdapter]]:
    """Returns the stack of adapters (name, folder, scale) on a base, and its adapters with their scales.

    Errors of `read_adapter` and `check_stack` are raised as they are.

    Raises:
        UnsupportedAdapter: Two copies of a tensor in an adapter's file differ.
    """
    stack = check_stack(base, [read_adapter(folder, name, experts=True) for name, folder, _ in adapters])
    with TensorReader() as reader:
        for adapter in stack.adapters:
            _check_copies(reader, stack.base, adapter)
    scales = [scale for _, _, scale in adapters]
    return stack, [ScaledAdapter(a, scale) for a, scale in zip(stack.adapters, scales, strict=True)]


def _check_copies(reader: TensorReader, base: Checkpoint, adapter: Adapter) -> None:
    for name, copy in adapter.copies.items():
        if not torch.equal(reader.view(copy), reader.view(adapter.replaced[base.embeddings])):
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} holds a {name!r} that differs from its {base.embeddings!r}; the base ties the two.",
                "Name both in modules_to_save without ensure_weight_tying if each was trained on its own.",
            )


def changes_of(adapters: Sequence[ScaledAdapter], name: str) -> list[Change]:
    """Returns the changes of one tensor, in the order of the adapters; those that leave it as it is are omitted."""
    return [change for item in adapters if (change := item.change(name))]


def release_tensor(reader: TensorReader, source: TensorSource, changes: Sequence[Change]) -> None:
    """Releases the pages of a base's tensor and of the tensors that change it."""
    reader.release(source)
    for change in changes:
        for header in change.headers:
            reader.release_header(header)


class ChangeLedger:
    """Record of the adapters' tensors that were used: each must be, or the merge fails."""

    def __init__(self, adapters: Sequence[ScaledAdapter]) -> None:
        self._adapters = adapters
        self._used: list[set[str]] = [set() for _ in adapters]

    def use(self, name: str) -> list[Change]:
        """Returns the changes of one tensor, in order, and records them as used."""
        changes = []
        for item, used in zip(self._adapters, self._used, strict=True):
            change = item.change(name)
            if change is not None:
                used.add(name)
                changes.append(change)
        return changes

    def accounts(self) -> list[AdapterAccount]:
        """Returns the account of each adapter, without the norms of its changes.

        Raises:
            InternalError: A change was not used.
        """
        for item, used in zip(self._adapters, self._used, strict=True):
            unused = item.adapter.changed - used
            if unused:
                raise InternalError(f"Adapter {item.adapter.name}: {min(unused)!r} was not used.")
        return [_account(item) for item in self._adapters]


def _account(item: ScaledAdapter) -> AdapterAccount:
    adapter = item.adapter
    return AdapterAccount(
        adapter=adapter.name, scale=item.scale, tensors=adapter.tensor_count,
        merged=len(adapter.pairs) + len(adapter.layers), replaced=len(adapter.replaced) + len(adapter.copies),
        rows_replaced=sum(len(rows.indices) for rows in adapter.rows.values()),
    )  # fmt: skip
