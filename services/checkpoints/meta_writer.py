"""Writer of an original checkpoint: one `consolidated.NN.pth` per rank, `params.json`, the tokenizer's file.

Names, splits and the rotary order are those of `architectures/key_map.py`, read from Hugging Face's side.
"""

import hashlib
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

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
from services.checkpoints.folder_spec import FolderSpec, WrittenModel
from services.checkpoints.journal import Journal, open_journal
from services.checkpoints.streaming import Produce, stream_tensors
from services.checkpoints.tensor_writer import TensorWriter
from services.checkpoints.torch_file import TorchFile
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.write_ledger import TensorPlan
from services.files.disk_full import disk_full_as_error
from services.files.json_file import write_json


def write_meta(target: Path, spec: FolderSpec, produce: Produce, hooks: WriteHooks) -> WrittenModel:
    """Writes an original checkpoint as `spec.output.ranks` files; `produce` gives each Hugging Face tensor by name.

    The digests are those of the tensors under Hugging Face's names, whole and in its order of rows: the same model has the
    same digests in both layouts. Peak memory: a few blocks of rows. Errors of `produce` are raised as they are.

    Raises:
        UnsupportedOption: The ranks or the rotary scaling cannot be written; nothing was written.
        UnsupportedFormat: Meta's layout cannot hold the model; nothing was written.
        VocabularyMismatch: Embeddings and tokenizer differ in size; nothing was written.
        DiskFull: The volume has no space for the tensors.
        JobCanceled: The caller has canceled the work.
        InternalError: `produce` does not give the planned tensors.
    """
    output = spec.output
    check_output(output)
    journal = open_journal(hooks.journal, spec.identity, target)
    write_json(target / "params.json", config_to_params(output.config))
    tokenizer = spec.tokenizer_folder / "tokenizer.model"
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, target / tokenizer.name)
    with RankWriter(target, spec, journal) as writer:
        stream_tensors(spec.plans, produce, writer, hooks)
    return WrittenModel(
        folder=target, plans=spec.plans, digests=writer.digests, size_bytes=output_bytes(output),
        reused=frozenset(writer.reused), reused_bytes=spec.computed_bytes(writer.reused),
    )  # fmt: skip


class RankWriter(TensorWriter):
    """Writer of the files of all ranks, which are open at once.

    A file takes one tensor at a time, so threads take turns; the next one's first block is computed meanwhile. The digests
    are those of the tensors as Hugging Face has them.
    """

    def __init__(self, folder: Path, spec: FolderSpec, journal: Journal) -> None:
        super().__init__(folder, spec.plans, journal)
        self._splits = {plan.name: split_of(spec.output, plan.name) for plan in spec.plans}
        self._ranks = [
            TorchFile(folder / f"consolidated.{rank:02d}.pth", self._parts(spec.plans, rank))
            for rank in range(spec.output.ranks)
        ]
        self._earlier = deque(journal.entries)
        self._turn = threading.Lock()

    def _parts(self, plans: Sequence[TensorPlan], rank: int) -> list[TensorPlan]:
        splits = self._splits
        return [
            TensorPlan(splits[plan.name].name, plan.dtype, splits[plan.name].shape(plan.shape, rank))
            for plan in plans
        ]

    def _open(self, files: ExitStack) -> None:
        for file in self._ranks:
            files.enter_context(file)

    def reuse(self, name: str) -> bool:
        """Returns True if a killed run has written this tensor, by the CRC-32 of its bytes in the files of all ranks.

        The tensors of a file are in the order in which they were written, so those before it are reused first, and all of
        them where this one is to be written now.
        """
        with self._turn:
            while self._earlier and name not in self.reused:
                self._reuse_next(self._earlier.popleft())
            return name in self.reused

    def _reuse_next(self, name: str) -> None:
        entry, part = self._ledger.entry(name), self._splits[name].name
        assert entry is not None
        pairs = list(zip(self._ranks, entry["crcs"], strict=True))
        if not all(file.holds_next(part, crc) for file, crc in pairs):
            self._ledger.forget([name, *self._earlier])
            self._earlier.clear()
            return
        for file, crc in pairs:
            file.reuse_tensor(part, crc)
        self._ledger.reuse(name)

    def write(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Writes one tensor to the ranks that hold it, given as blocks of rows in Hugging Face's order.

        Raises:
            InternalError: The blocks do not make the planned tensor, or it was written before or never planned.
        """
        plan, split = self._ledger.claim(name), self._splits[name]
        digest = hashlib.sha256()
        rows = digested_blocks(checked_blocks(plan, blocks), digest.update)
        ordered = _in_meta_order(rows, split, plan.shape[0])
        first = list(islice(ordered, 1))
        with self._turn, disk_full_as_error(self._target, plan.size_bytes):
            self._write_parts(split, chain(first, ordered))
            crcs = [file.close_tensor(split.name) for file in self._ranks]
            self._ledger.record(name, digest.hexdigest(), crcs=crcs)

    def _write_parts(self, split: Split, blocks: Iterable[torch.Tensor]) -> None:
        with ExitStack() as stack:
            members = [stack.enter_context(file.open_tensor(split.name)) for file in self._ranks]
            start = 0
            for block in blocks:
                for rank, part in _parts_of(block, split, start):
                    members[rank].write(tensor_bytes(part))
                start += block.shape[0]


def _in_meta_order(blocks: Iterable[torch.Tensor], split: Split, rows: int) -> Iterator[torch.Tensor]:
    if split.rotary_heads:
        return halves_to_interleaved_blocks(blocks, split.rotary_heads, rows)
    return aligned_blocks(blocks, 1)


def _parts_of(block: torch.Tensor, split: Split, start: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields each rank with its part of a block whose first row is row `start` of the tensor."""
    for rank, (low, high) in enumerate(split.bounds):
        if split.dim is None:
            yield rank, block
        elif split.dim == 1:
            yield rank, block[:, low:high]
        elif start < high and low < start + block.shape[0]:
            yield rank, block[max(low - start, 0) : high - start]
