"""An original checkpoint, written: one `consolidated.NN.pth` a rank, `params.json`, the tokenizer's file.

Names, splits and the rotary order are those of `formats/key_map.py`, read from Hugging Face's side.
"""

import hashlib
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from services.architectures.output_spec import Split, check_output, output_bytes, split_of
from services.architectures.params import config_to_params
from services.checkpoints.blocks import (
    aligned_blocks,
    checked_blocks,
    digested_blocks,
    halves_to_interleaved_blocks,
    tensor_bytes,
)
from services.checkpoints.huggingface_writer import FolderSpec, WriteHooks, WrittenModel, write_json
from services.checkpoints.journal import Journal, open_journal
from services.checkpoints.safetensors_writer import disk_errors
from services.checkpoints.streaming import Produce, stream_tensors
from services.checkpoints.torch_file import TorchFile
from services.checkpoints.write_ledger import Ledger, TensorPlan


def write_meta(target: Path, layout: FolderSpec, produce: Produce, watch: WriteHooks) -> WrittenModel:
    """Writes an original checkpoint over `layout.output.ranks` files; `produce` gives each Hugging Face tensor by name.

    The digests are those of the tensors under Hugging Face's names, whole and in its order of rows: the same model has the
    same digests in both layouts. Peak memory: a few blocks of rows.

    Raises:
        UnsupportedOption, UnsupportedFormat, VocabularyMismatch: before anything is written.
        DiskFull, JobCanceled, InternalError, and whatever `produce` raises.
    """
    output = layout.output
    check_output(output)
    journal = open_journal(watch.journal, layout.identity, target)
    write_json(target / "params.json", config_to_params(output.config))
    tokenizer = layout.tokenizer_folder / "tokenizer.model"
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, target / tokenizer.name)
    with RankWriter(target, layout, journal) as writer:
        stream_tensors(
            layout.plans, produce, writer, report=watch.report, check_canceled=watch.check_canceled
        )  # fmt: skip
    return WrittenModel(
        target,
        layout.plans,
        writer.digests,
        output_bytes(output),
        frozenset(writer.kept),
        layout.kept_bytes(writer.kept),
    )


class RankWriter:
    """Writes a model's tensors into the files of all ranks, which are open at once; ends complete or raises.

    A file takes one tensor at a time, so threads take turns; the next one's first block is computed meanwhile. Files of an
    earlier try are filled further where the journal knows of one.
    """

    def __init__(self, folder: Path, layout: FolderSpec, journal: Journal) -> None:
        self._folder = folder
        plans, output = layout.plans, layout.output
        self._splits = {plan.name: split_of(output, plan.name) for plan in plans}
        self._files = [
            TorchFile(folder / f"consolidated.{rank:02d}.pth", self._parts(plans, rank))
            for rank in range(output.ranks)
        ]
        self._stack = ExitStack()
        self._ledger = Ledger(plans, journal)
        self._earlier = deque(journal.entries)
        self._turn = threading.Lock()

    def _parts(self, plans: Sequence[TensorPlan], rank: int) -> list[TensorPlan]:
        splits = self._splits
        return [
            TensorPlan(splits[plan.name].name, plan.dtype, splits[plan.name].shape(plan.shape, rank))
            for plan in plans
        ]

    @property
    def size_bytes(self) -> int:
        """Bytes of all planned tensors, each counted once."""
        return self._ledger.size_bytes

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each written tensor's bytes as Hugging Face has them, in the order of the plan."""
        return self._ledger.digests

    @property
    def kept(self) -> set[str]:
        """The tensors that an earlier try had written."""
        return self._ledger.kept

    def __enter__(self) -> Self:
        with ExitStack() as stack, disk_errors(self._folder, self.size_bytes):
            for file in self._files:
                stack.enter_context(file)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with disk_errors(self._folder, self.size_bytes):
            self._stack.__exit__(kind, error, trace)
        if kind is None:
            self._ledger.check_complete()

    def keep(self, name: str) -> bool:
        """Whether an earlier try wrote this tensor, by the CRC-32 of its bytes in the files of all ranks.

        A file's tensors lie in the order in which they were written: those before it are taken over first, all of them
        where this one is to be written now.
        """
        with self._turn:
            while self._earlier and name not in self.kept:
                self._take_over(self._earlier.popleft())
            return name in self.kept

    def _take_over(self, name: str) -> None:
        entry, part = self._ledger.entry(name), self._splits[name].name
        assert entry is not None
        pairs = list(zip(self._files, entry["crcs"], strict=True))
        if not all(file.holds_next(part, crc) for file, crc in pairs):
            self._ledger.forget([name, *self._earlier])
            self._earlier.clear()
            return
        for file, crc in pairs:
            file.keep_tensor(part, crc)
        self._ledger.keep(name)

    def write(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Writes one tensor to the ranks that hold it, given as blocks of rows in Hugging Face's order.

        Raises:
            InternalError: the blocks do not make the planned tensor, or it was written before.
        """
        plan, split = self._ledger.claim(name), self._splits[name]
        digest = hashlib.sha256()
        rows = digested_blocks(checked_blocks(plan, blocks), digest.update)
        ordered = _in_metas_order(rows, split, plan.shape[0])
        first = list(islice(ordered, 1))
        with self._turn, disk_errors(self._folder, plan.size_bytes):
            self._write_parts(split, chain(first, ordered))
            crcs = [file.close_tensor(split.name) for file in self._files]
            self._ledger.record(name, digest.hexdigest(), crcs=crcs)

    def _write_parts(self, split: Split, blocks: Iterable[torch.Tensor]) -> None:
        with ExitStack() as stack:
            members = [stack.enter_context(file.open_tensor(split.name)) for file in self._files]
            start = 0
            for block in blocks:
                for rank, part in _parts_of(block, split, start):
                    members[rank].write(tensor_bytes(part))
                start += block.shape[0]


def _in_metas_order(blocks: Iterable[torch.Tensor], split: Split, rows: int) -> Iterator[torch.Tensor]:
    if split.rotary_heads:
        return halves_to_interleaved_blocks(blocks, split.rotary_heads, rows)
    return aligned_blocks(blocks, 1)


def _parts_of(block: torch.Tensor, split: Split, start: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Which rank takes what of a block whose first row is row `start` of the tensor."""
    for rank, (low, high) in enumerate(split.bounds):
        if split.dim is None:
            yield rank, block
        elif split.dim == 1:
            yield rank, block[:, low:high]
        elif start < high and low < start + block.shape[0]:
            yield rank, block[max(low - start, 0) : high - start]
