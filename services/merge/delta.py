"""Arithmetic of a merge.

`w = round(float32(w) + (float32(B) @ float32(A)) * scaling)` for each adapter in order, rounded to the base's dtype
each time: on a CPU bit for bit equal to PEFT's `merge_and_unload` there, one adapter after another
(peft/tuners/lora/layer.py, Linear.get_delta_weight and merge), and to the scripts of 2023. With `once` the sum stays in
float32 and is rounded at the end. A GPU sums in another order: there a product may differ in float32's last places.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from services.adapters.adapter import Adapter
from services.adapters.lora_tensors import LoraPair
from services.adapters.tuners import TokenRows, TunerLayer
from services.checkpoints.tensor_reader import TensorReader, check_finite
from services.files.tensors import TensorHeader
from services.merge.devices import CPU
from services.merge.factors import pair_factors
from services.merge.peft_layers import merge_layer

BLOCK_ELEMENTS = 1 << 20
"""Elements of the blocks of rows in which a tensor is computed: 4 MB in float32, so that blocks stay in the cache."""

LEAST_ROWS = 64
"""Smallest number of rows of a block of a larger tensor: products of less than a dozen rows are summed by other kernels, with other bits (oneMKL
through torch 2.13), and a rest of one to three rows is what 3072 columns would leave of 3072 or 1024 rows."""

GPU_BLOCK_ELEMENTS = 1 << 24
"""Elements of a block on a GPU, 64 MB in float32: each block is copied there and back."""


@dataclass(frozen=True, slots=True)
class Change:
    """Change of one tensor by one adapter: it is replaced whole, then rows of it, then a pair's product or a layer is added."""

    adapter: str
    scale: float
    pair: LoraPair | None = None
    replaced: TensorHeader | None = None
    rows: TokenRows | None = None
    layer: TunerLayer | None = None

    @classmethod
    def by(cls, adapter: Adapter, scale: float, name: str) -> "Change | None":
        """Returns the change of the tensor of this name by an adapter, None if the adapter leaves it as it is."""
        name = adapter.same.get(name, name)
        if name not in adapter.changed:
            return None
        pair, replaced = adapter.pairs.get(name), adapter.replaced.get(name)
        rows, layer = adapter.rows.get(name), adapter.layers.get(name)
        return cls(adapter.name, scale, pair, replaced, rows, layer)

    @property
    def headers(self) -> list[TensorHeader]:
        """Tensors of the adapter that the change uses."""
        pair = [self.pair.a, self.pair.b] if self.pair else []
        whole = [self.replaced] if self.replaced else []
        layer = [*self.layer.tensors.values(), *self.layer.shared.values()] if self.layer else []
        return [*pair, *whole, *([self.rows.rows] if self.rows else []), *layer]


@dataclass(frozen=True, slots=True)
class _Factors:
    """A pair's factors in float32: the change of some rows is the product of B's rows (or A's columns) and the other factor."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    transposed: bool
    rounded: bool

    def rows(self, rows: slice, dtype: torch.dtype | None) -> torch.Tensor:
        """Returns `(B @ A) * scaling` for some rows of the weight.

        Some changes are rounded to `dtype`, as PEFT does before it adds them (peft/tuners/lora/layer.py, Embedding.merge and
        ParamWrapper.merge).
        """
        product = (self.b @ self.a[:, rows]).T if self.transposed else self.b[rows] @ self.a
        delta = product.mul_(self.scaling)
        return delta.to(dtype) if self.rounded and dtype is not None else delta


def changed_blocks(
    reader: TensorReader,
    weight: torch.Tensor,
    changes: Sequence[Change],
    *,
    once: bool,
    device: torch.device = CPU,
) -> Iterator[torch.Tensor]:
    """Yields the weight after all changes, as blocks of rows in order: in its own dtype, or in the wide one with `once`.

    Args:
        weight: Shape (out, in); not modified.
        once: Do not round; the caller rounds to the dtype that it writes.
        device: Device that multiplies and adds; the blocks are on the CPU again. Trained rows and PEFT's layers stay on the
            CPU.

    Raises:
        NonFiniteTensor: A tensor of an adapter holds NaN or infinity.
    """
    if any(change.layer is not None or change.rows is not None for change in changes):
        yield _changed_whole(reader, weight, changes, once=once, device=device)
        return
    dtype = weight.dtype
    last = max((i for i, change in enumerate(changes) if change.replaced is not None), default=0)
    factors = []
    for change in changes[last:]:  # a tensor that a later adapter replaces whole does not count
        if change.replaced is not None:
            weight = _checked(change.adapter, change.replaced, reader.view(change.replaced))
        if change.pair is not None:
            factors.append(_factors(reader, change, change.pair, device))
    max_elements = BLOCK_ELEMENTS if device.type == "cpu" else GPU_BLOCK_ELEMENTS
    for rows in even_rows(weight.shape[0], max_elements // max(1, weight[0].numel())):
        deltas = [factor.rows(rows, None if once else dtype) for factor in factors]
        yield _changed(weight[rows].to(device).to(dtype), deltas, once=once).cpu()


def even_rows(rows: int, max_rows: int) -> Iterator[slice]:
    """Yields all rows in blocks of about equal size, at most `max_rows` (or twice LEAST_ROWS) each."""
    count = -(-rows // max(max_rows, 2 * LEAST_ROWS))
    for number in range(count):
        yield slice(rows * number // count, rows * (number + 1) // count)


def _changed(block: torch.Tensor, deltas: Sequence[torch.Tensor], *, once: bool) -> torch.Tensor:
    """Returns the sum in the wider of float32 and the block's dtype, rounded to the block's after each delta unless `once`."""
    dtype, wide = block.dtype, torch.promote_types(block.dtype, torch.float32)
    for delta in deltas:
        # the same sum in one pass if the wide dtype is the delta's own: a half is widened as it is read
        block = delta.add_(block) if delta.dtype == wide else block.to(wide) + delta
        if not once:
            block = block.to(dtype)
    return block


def _changed_whole(
    reader: TensorReader,
    weight: torch.Tensor,
    changes: Sequence[Change],
    *,
    once: bool,
    device: torch.device,
) -> torch.Tensor:
    """Returns the weight of `changed_blocks`, for changes that need the tensor whole."""
    dtype = weight.dtype
    working = torch.promote_types(dtype, torch.float32) if once else dtype
    for change in changes:
        if change.replaced is not None or change.pair is not None:
            plain = Change(change.adapter, change.scale, change.pair, change.replaced)
            blocks = changed_blocks(reader, weight.to(working), [plain], once=once, device=device)
            weight = torch.cat(list(blocks))
        if change.rows is not None:
            indices = torch.tensor(change.rows.indices, dtype=torch.long)
            trained = _checked(change.adapter, change.rows.rows, reader.view(change.rows.rows)).to(working)
            weight = weight.to(working).index_copy(0, indices, trained)
        if change.layer is not None:
            weight = merge_layer(reader, change.adapter, change.layer, weight.to(working))
    return weight


def _factors(reader: TensorReader, change: Change, pair: LoraPair, device: torch.device) -> _Factors:
    halves = zip((pair.a, pair.b), pair_factors(reader, pair), strict=True)
    a, b = (_checked(change.adapter, header, half).to(device).float() for header, half in halves)
    return _Factors(a, b, pair.scaling * change.scale, pair.transposed, pair.rounded)


def _checked(adapter: str, header: TensorHeader, tensor: torch.Tensor) -> torch.Tensor:
    check_finite(f"{adapter}: {header.name}", tensor)
    return tensor
