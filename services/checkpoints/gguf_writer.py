"""Writer of a GGUF file for llama.cpp and Ollama, tensor by tensor.

Float32 vectors and the rows of q and k in interleaved pairs are as llama.cpp's converter writes them (ggml-org/llama.cpp
`convert_hf_to_gguf.py`, LlamaModel.permute).
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import gguf
import torch

from services.architectures.output_spec import check_output
from services.checkpoints.blocks import aligned_blocks, halves_to_interleaved_blocks, tensor_bytes
from services.checkpoints.folder_spec import FolderSpec, WrittenModel
from services.checkpoints.gguf_encoding import encode, share_cores
from services.checkpoints.gguf_metadata import encode_header
from services.checkpoints.gguf_plans import MODEL_FILE, gguf_plans, interleaved_heads, offset_of
from services.checkpoints.gguf_rope import rope_factors
from services.checkpoints.journal import Journal, open_journal
from services.checkpoints.modelfile import write_modelfile
from services.checkpoints.streaming import Produce, stream_tensors
from services.checkpoints.tensor_writer import Place, PositionedWriter, write_at
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.write_ledger import TensorPlan
from services.files.disk_full import disk_full_as_error


def write_gguf(target: Path, spec: FolderSpec, produce: Produce, hooks: WriteHooks) -> WrittenModel:
    """Writes `model.gguf` and a `Modelfile`; `produce` gives each Hugging Face tensor by name.

    Plans and digests are those of the tensors as they are stored: GGUF's names, encodings and bytes. Peak memory: a few
    blocks of rows. Errors of `produce` are raised as they are.

    Raises:
        UnsupportedOption: No tensor can be stored in the dtype that was requested; nothing was written.
        UnsupportedFormat: GGUF cannot hold the model; nothing was written.
        NonFiniteTensor: A value is too large for its encoding.
        DiskFull: The volume has no space for the tensors.
        JobCanceled: The caller has canceled the work.
        InternalError: `produce` does not give the planned tensors.
    """
    check_output(spec.output)
    journal = open_journal(hooks.journal, spec.identity, target)
    path = target / MODEL_FILE
    extra = rope_factors(spec.output.config)
    plans = [
        *gguf_plans(spec.output).values(),
        *(_extra_plan(name, tensor) for name, tensor in extra.items()),
    ]
    with GgufFile(path, encode_header(path, spec, plans), spec, journal) as writer:
        share_cores()
        writer.write_extra(extra)
        stream_tensors(spec.plans, produce, writer, hooks)
    write_modelfile(target, MODEL_FILE, spec.template)
    return WrittenModel(
        folder=target, plans=plans, digests=writer.stored_digests, size_bytes=sum(plan.size_bytes for plan in plans),
        reused=frozenset(writer.reused), reused_bytes=spec.computed_bytes(writer.reused),
    )  # fmt: skip


def _extra_plan(name: str, tensor: torch.Tensor) -> TensorPlan:
    return TensorPlan(name, "F32", tuple(tensor.shape))


class GgufFile(PositionedWriter):
    """Writer of a header and the tensors after it.

    The positions follow GGUFWriter's rule (write_ti_data_to_file): one after another, each padded to the alignment.
    """

    def __init__(self, path: Path, header: bytes, spec: FolderSpec, journal: Journal) -> None:
        super().__init__(path, spec.plans, journal)
        self._header = header
        self._output = spec.output
        self._stored = gguf_plans(spec.output)
        self._importance = spec.importance.rows if spec.importance else {}
        self._extra_digests: dict[str, str] = {}

    @property
    def stored_digests(self) -> dict[str, str]:
        """SHA-256 of each tensor's bytes in the file, by GGUF's names."""
        digests = {self._stored[name].name: digest for name, digest in self.digests.items()}
        return digests | self._extra_digests

    def _open(self, files: ExitStack) -> None:
        self._descriptor = self._open_file(self._target, files)
        if os.pread(self._descriptor, len(self._header), 0) != self._header:
            os.ftruncate(self._descriptor, 0)  # a killed run's tensors lie elsewhere behind another header
        write_at(self._descriptor, memoryview(self._header), 0)
        self._end = _padded(len(self._header))
        for name, plan in self._stored.items():
            self._places[name] = Place(self._descriptor, self._end, plan.size_bytes)
            self._end = _padded(self._end + plan.size_bytes)

    def write_extra(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes extra tensors after the model's and preallocates the file.

        Raises:
            DiskFull: The volume has no space for the whole file.
        """
        offsets = []
        for tensor in tensors.values():
            offsets.append(self._end)
            self._end = _padded(self._end + len(tensor_bytes(tensor)))
        with disk_full_as_error(self._target, self._end):
            os.posix_fallocate(self._descriptor, 0, self._end)
            for (name, tensor), offset in zip(tensors.items(), offsets, strict=True):
                write_at(self._descriptor, tensor_bytes(tensor), offset)
                self._extra_digests[name] = hashlib.sha256(tensor_bytes(tensor)).hexdigest()

    def _stored_blocks(self, plan: TensorPlan, blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Returns the blocks in GGUF's order of rows, with its offset, and in the tensor's encoding.

        Raises:
            NonFiniteTensor: A value is too large for the encoding.
        """
        stored, heads = self._stored[plan.name], interleaved_heads(self._output, plan.name)
        ordered = (
            halves_to_interleaved_blocks(blocks, heads, stored.shape[0])
            if heads
            else aligned_blocks(blocks, 1)
        )
        offset = offset_of(self._output, plan.name)
        if offset:
            ordered = (block.float() + offset for block in ordered)
        importance = self._importance.get(stored.name)
        return (encode(plan.name, block, stored.dtype, importance) for block in ordered)


def _padded(offset: int) -> int:
    return int(gguf.GGUFWriter.ggml_pad(offset, gguf.GGUF_DEFAULT_ALIGNMENT))
