"""Size of each adapter's change: its Frobenius norm by kind of module, as a merge reports it.

For a LoRA pair it follows from the halves alone: ||s·BA||² = s²·sum((BᵀB)∘(AAᵀ)), two products of r×r; that is the change before
any rounding. Replaced tensors, trained rows and the changes of PEFT's layers are measured as the tensor after the adapter
minus the tensor before it, in blocks of rows. PEFT's layers are the slow path: each is merged once more.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from services.adapters.lora_tensors import LoraPair
from services.architectures.checkpoint import Checkpoint
from services.checkpoints.tensor_reader import TensorReader
from services.checkpoints.write_hooks import WriteHooks
from services.merge import ScaledAdapter, changes_of
from services.merge.delta import changed_blocks
from services.merge.factors import pair_factors
from services.progress import Progress


@dataclass(frozen=True, slots=True)
class ChangeNorms:
    """Norms of one adapter's change by kind of module, and the rows that it adds to the embeddings."""

    by_kind: Mapping[str, float] = field(default_factory=dict)
    rows_added: int = 0

    @property
    def all_zero(self) -> bool:
        """True if the adapter changes nothing."""
        return not self.rows_added and not any(self.by_kind.values())


def module_kind(tensor: str) -> str:
    """Returns the kind of module of a tensor (Hugging Face's name): q_proj, embed_tokens, …, or `norms`."""
    module = tensor.rsplit(".", 2)[-2]
    return "norms" if "norm" in module or module.startswith("ln_") else module


def change_norms(
    reader: TensorReader, base: Checkpoint, adapters: Sequence[ScaledAdapter], hooks: WriteHooks | None = None
) -> list[ChangeNorms]:
    """Returns the norms of each adapter, in order, computed in float64; added rows are counted and are part of no norm.

    Peak memory: a few blocks of rows; for trained rows and PEFT's layers that of their merge.

    Raises:
        JobCanceled: The caller has canceled the work.
        NonFiniteTensor: A tensor holds NaN or infinity.
    """
    hooks = hooks or WriteHooks()
    total, done = sum(len(item.adapter.changed) for item in adapters), 0
    norms, rows = [], base.config.vocab_size
    for number, item in enumerate(adapters):
        squares: dict[str, float] = {}
        for name in sorted(item.adapter.changed):
            hooks.check_canceled()
            kind = module_kind(name)
            squares[kind] = squares.get(kind, 0.0) + _square(reader, base, adapters[: number + 1], name)
            done += 1
            hooks.report(Progress("measuring changes", done, total, "tensors"))
        added = max(0, (item.adapter.vocabulary_rows or 0) - rows)
        norms.append(ChangeNorms({kind: math.sqrt(square) for kind, square in squares.items()}, added))
        rows += added
    return norms


def nothing_changed(adapters: Sequence[ScaledAdapter], norms: Sequence[ChangeNorms]) -> list[str]:
    """Returns a warning for each adapter that changes nothing."""
    return [
        f"Adapter {item.adapter.name} changes nothing: every change that it makes is zero. It may have been saved before "
        "it was trained."
        for item, norm in zip(adapters, norms, strict=True)
        if norm.all_zero
    ]


def _square(reader: TensorReader, base: Checkpoint, adapters: Sequence[ScaledAdapter], name: str) -> float:
    """Returns the squared norm of the last adapter's change of a tensor."""
    changes = changes_of(adapters, name)
    last = changes[-1]
    if last.pair is not None and not (last.replaced or last.rows or last.layer):
        return pair_square(reader, last.pair, last.scale)
    weight = reader.load(base.tensors[name])
    before = changed_blocks(reader, weight, changes[:-1], once=False) if changes[:-1] else [weight]
    after = changed_blocks(reader, weight, changes, once=False)
    square = sum(
        float((new.double() - old.double()).square().sum()) for old, new in common_rows(before, after)
    )
    for header in last.headers:
        reader.release_header(header)
    reader.release(base.tensors[name])
    return square


def pair_square(reader: TensorReader, pair: LoraPair, scale: float) -> float:
    """Returns ||s·BA||² of a pair without the product: the trace of BᵀB·AAᵀ, which is a sum over r×r."""
    a, b = (half.double() for half in pair_factors(reader, pair))
    square = float(((b.T @ b) * (a @ a.T)).sum()) * (pair.scaling * scale) ** 2
    return max(square, 0.0)  # rounding may make the trace of a zero change negative


def common_rows(
    before: Iterable[torch.Tensor], after: Iterable[torch.Tensor], most_elements: int = 1 << 20
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields pairs of equally many rows of two tensors in different blocks, up to the end of the shorter one."""
    tensors = (iter(before), iter(after))
    old, new = (next(blocks, None) for blocks in tensors)
    while old is not None and new is not None:
        rows = min(len(old), len(new), max(1, most_elements // max(1, new[0].numel())))
        yield old[:rows], new[:rows]
        old = old[rows:] if rows < len(old) else next(tensors[0], None)
        new = new[rows:] if rows < len(new) else next(tensors[1], None)
