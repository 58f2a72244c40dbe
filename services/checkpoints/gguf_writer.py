"""A GGUF file for llama.cpp and Ollama, written tensor by tensor: the header first, by the `gguf` package.

Names, metadata, float32 vectors and the rows of q and k in interleaved pairs are those of llama.cpp's converter
(ggml-org/llama.cpp `convert_hf_to_gguf.py`, LlamaModel: set_gguf_parameters, permute, generate_extra_tensors).
"""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import gguf
import torch

from services.architectures.checkpoint import rotary_heads
from services.architectures.config import ModelConfig
from services.architectures.key_map import BY_HUGGINGFACE, kind_of
from services.architectures.output_spec import OutputSpec, check_output, gguf_encoding
from services.checkpoints.blocks import (
    aligned_blocks,
    checked_blocks,
    halves_to_interleaved_blocks,
    tensor_bytes,
)
from services.checkpoints.gguf_tokens import add_tokenizer
from services.checkpoints.huggingface_writer import FolderSpec, WriteHooks, WrittenModel
from services.checkpoints.journal import Journal, open_journal
from services.checkpoints.modelfile import write_modelfile
from services.checkpoints.safetensors_writer import digest_at, disk_errors, write_at
from services.checkpoints.streaming import Produce, stream_tensors
from services.checkpoints.tensor_reader import check_finite
from services.checkpoints.write_ledger import Ledger, TensorPlan
from services.errors import NonFiniteTensor

MODEL_FILE = "model.gguf"
ROPE_FACTORS = "rope_freqs.weight"

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}  # fmt: skip

Q8_0_LARGEST = 127 * 65504.0
"""The largest value of a block whose scale a float16 can hold."""


def write_gguf(target: Path, layout: FolderSpec, produce: Produce, watch: WriteHooks) -> WrittenModel:
    """Writes `model.gguf` and a `Modelfile`; `produce` gives each Hugging Face tensor by name.

    Plans and digests are those of the tensors as they lie in the file: GGUF's names, encodings and bytes. Peak memory: a few
    blocks of rows.

    Raises:
        UnsupportedOption, UnsupportedFormat: before anything is written.
        NonFiniteTensor, DiskFull, JobCanceled, InternalError, and whatever `produce` raises.
    """
    output = layout.output
    check_output(output)
    journal = open_journal(watch.journal, layout.identity, target)
    path = target / MODEL_FILE
    extra = rope_factors(output.config)
    stored = gguf_plans(output)
    everything = [*stored.values(), *(_extra_plan(name, tensor) for name, tensor in extra.items())]
    with GgufFile(path, _header(path, layout, everything), layout, journal) as writer:
        writer.write_extra(extra)
        stream_tensors(
            layout.plans, produce, writer, report=watch.report, check_canceled=watch.check_canceled
        )  # fmt: skip
    write_modelfile(target, MODEL_FILE, layout.template)
    return WrittenModel(
        target, everything, writer.stored_digests, sum(plan.size_bytes for plan in everything),
        frozenset(writer.kept), layout.kept_bytes(writer.kept),
    )  # fmt: skip


def gguf_plans(output: OutputSpec) -> dict[str, TensorPlan]:
    """Each tensor as GGUF stores it, by its Hugging Face name."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, output.config.num_hidden_layers)
    plans = {}
    for name, (_, shape) in output.tensors.items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, f"{name} stands in the key map and not in GGUF's"
        plans[name] = TensorPlan(stored, gguf_encoding(output, name), shape)
    return plans


def heads_of(output: OutputSpec, name: str) -> int:
    """By how many heads the rows of a tensor are interleaved; 0 for none."""
    return rotary_heads(BY_HUGGINGFACE[kind_of(name)[0]], output.config)


def rope_factors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Llama 3's frequency factors, float32 of shape (head_dim / 2,), by name; nothing for other scalings.

    Source: llama.cpp `convert_hf_to_gguf.py`, LlamaModel.generate_extra_tensors; the formula is apply_scaling of
    meta-llama/llama-models `model.py`, whose frequency is divided by the factor.
    """
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type", scaling.get("type")) != "llama3":
        return {}
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    wavelengths = 2 * math.pi * config.rope_theta**exponents
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelengths > context / low, torch.full_like(between, factor), between)
    return {ROPE_FACTORS: torch.where(wavelengths < context / high, torch.ones_like(between), factors)}


def _extra_plan(name: str, tensor: torch.Tensor) -> TensorPlan:
    return TensorPlan(name, "F32", tuple(tensor.shape))


# ---- the header ---------------------------------------------------------------------------------------


def _header(path: Path, layout: FolderSpec, plans: Iterable[TensorPlan]) -> bytes:
    """Metadata, tokenizer and the tensors' places. The package writes them to a file, which an earlier try's must survive."""
    aside = path.with_suffix(".header")
    writer = gguf.GGUFWriter(path=None, arch=gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    _add_parameters(writer, layout.output)
    add_tokenizer(writer, layout.tokenizer_folder, layout.output.config)
    for plan in plans:
        encoding = gguf.GGMLQuantizationType[plan.dtype]
        writer.add_tensor_info(
            plan.name, plan.shape, torch.empty(0).numpy().dtype, plan.size_bytes, raw_dtype=encoding
        )
    with disk_errors(path, 0):
        writer.write_header_to_file(aside)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
    header = aside.read_bytes()
    aside.unlink()
    return header


def _add_parameters(writer: gguf.GGUFWriter, output: OutputSpec) -> None:
    config = output.config
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_scaling(writer, config.rope_scaling or {})
    writer.add_file_type(FILE_TYPES["Q8_0" if output.dtype == "Q8_0" else _main_encoding(output)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_scaling(writer: gguf.GGUFWriter, scaling: Mapping[str, Any]) -> None:
    if scaling.get("rope_type", scaling.get("type")) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))


def _main_encoding(output: OutputSpec) -> str:
    """The encoding of the most bytes."""
    sizes: dict[str, int] = {}
    for plan in gguf_plans(output).values():
        sizes[plan.dtype] = sizes.get(plan.dtype, 0) + plan.size_bytes
    return max(sizes, key=lambda encoding: sizes[encoding])


# ---- the data -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    plan: TensorPlan
    offset: int
    heads: int


class GgufFile:
    """Writes a header and the tensors behind it; a context manager that ends complete or raises. Safe from several threads.

    A file of an earlier try is filled further where the journal knows of one. The places follow GGUFWriter's rule (write_ti_data_to_file): one after another, each padded to the alignment.
    """

    def __init__(self, path: Path, header: bytes, layout: FolderSpec, journal: Journal) -> None:
        self._path = path
        self._header = header
        self._places: dict[str, _Place] = {}
        self._ledger = Ledger(layout.plans, journal)
        self._end = _padded(len(header))
        for name, stored in gguf_plans(layout.output).items():
            self._places[name] = _Place(stored, self._end, heads_of(layout.output, name))
            self._end = _padded(self._end + stored.size_bytes)
        self._extra_digests: dict[str, str] = {}

    @property
    def size_bytes(self) -> int:
        """Bytes of all planned tensors as they are computed."""
        return self._ledger.size_bytes

    @property
    def stored_digests(self) -> dict[str, str]:
        """SHA-256 of each tensor's bytes in the file, by GGUF's names."""
        digests = {self._places[name].plan.name: digest for name, digest in self._ledger.digests.items()}
        return digests | self._extra_digests

    @property
    def kept(self) -> set[str]:
        """The tensors (by Hugging Face's names) that an earlier try had written."""
        return self._ledger.kept

    def __enter__(self) -> Self:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        os.fchmod(self._descriptor, 0o644)  # whatever the umask: other containers read it
        with disk_errors(self._path, len(self._header)):
            write_at(self._descriptor, memoryview(self._header), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        if kind is None:
            self._ledger.check_complete()

    def write_extra(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes what is no tensor of the model behind the last one, and takes the room of all of them."""
        offsets = []
        for tensor in tensors.values():
            offsets.append(self._end)
            self._end = _padded(self._end + len(tensor_bytes(tensor)))
        with disk_errors(self._path, self._end):
            os.posix_fallocate(self._descriptor, 0, self._end)
            for (name, tensor), offset in zip(tensors.items(), offsets, strict=True):
                write_at(self._descriptor, tensor_bytes(tensor), offset)
                self._extra_digests[name] = hashlib.sha256(tensor_bytes(tensor)).hexdigest()

    def keep(self, name: str) -> bool:
        """Whether an earlier try wrote this tensor: its bytes are read again and must have the digest noted then."""
        entry, place = self._ledger.entry(name), self._places[name]
        size_bytes = place.plan.size_bytes
        if entry is None or digest_at(self._descriptor, place.offset, size_bytes) != entry["sha256"]:
            return False
        self._ledger.keep(name)
        return True

    def write(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Encodes and writes one tensor, given as blocks of rows in Hugging Face's order.

        Raises:
            NonFiniteTensor: a value is too large for the encoding.
            InternalError: the blocks do not make the planned tensor, or it was written before.
        """
        plan, place = self._ledger.claim(name), self._places[name]
        digest, offset = hashlib.sha256(), place.offset
        with disk_errors(self._path, place.plan.size_bytes):
            for block in _in_ggufs_order(checked_blocks(plan, blocks), place):
                data = tensor_bytes(encode(name, block, place.plan.dtype))
                digest.update(data)
                write_at(self._descriptor, data, offset)
                offset += len(data)
        self._ledger.record(name, digest.hexdigest())


def _padded(offset: int) -> int:
    return int(gguf.GGUFWriter.ggml_pad(offset, gguf.GGUF_DEFAULT_ALIGNMENT))


def _in_ggufs_order(blocks: Iterable[torch.Tensor], place: _Place) -> Iterator[torch.Tensor]:
    if place.heads:
        return halves_to_interleaved_blocks(blocks, place.heads, place.plan.shape[0])
    return aligned_blocks(blocks, 1)


def encode(name: str, block: torch.Tensor, encoding: str) -> torch.Tensor:
    """Rows in an encoding: in its dtype, or as rows of bytes.

    Raises:
        NonFiniteTensor: a value is too large for it.
    """
    if encoding == "Q8_0":
        return _to_q8_0(name, block)
    if encoding == "F32" and block.dtype != torch.float32:
        block = block.float()  # a vector: exact from float16 and bfloat16
        check_finite(name, block)
    return block


def _to_q8_0(name: str, block: torch.Tensor) -> torch.Tensor:
    values = block.float()
    largest = float(values.abs().max())
    if largest > Q8_0_LARGEST:
        raise NonFiniteTensor(
            f"{name!r} holds {largest:.4g}, Q8_0 encodes values up to {Q8_0_LARGEST:.4g}",
            "Ask for another dtype.",
        )
    encoded = gguf.quants.quantize(values.numpy(), gguf.GGMLQuantizationType.Q8_0)
    return torch.from_numpy(encoded)


def decode_q8_0(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of rows of bytes in Q8_0, and how far each may be from what was encoded; float64, shape (rows, columns).

    A block is a float16 scale d and 32 signed bytes q (ggml `ggml-common.h`, block_q8_0): rounding q costs d / 2, rounding d
    half a unit in its last place, 127 times.
    """
    blocks = rows.view(rows.shape[0], -1, 34)
    scales = blocks[..., :2].contiguous().view(torch.float16).double()
    values = blocks[..., 2:].contiguous().view(torch.int8).double() * scales
    unit = torch.exp2(torch.floor(torch.log2(scales.clamp(min=2.0**-14)))) * torch.finfo(torch.float16).eps
    slack = (1.001 * (scales / 2 + 127 * unit / 2)).expand_as(values)
    return values.reshape(rows.shape[0], -1), slack.reshape(rows.shape[0], -1)
