"""Header of a GGUF file, written by the `gguf` package: metadata, tokenizer and the tensors' positions.

Keys and values are those of llama.cpp's converter (ggml-org/llama.cpp `convert_hf_to_gguf.py`, LlamaModel:
set_gguf_parameters, generate_extra_tensors).
"""

import math
from collections.abc import Iterable
from pathlib import Path

import gguf
import torch

from services.architectures.config import ModelConfig
from services.architectures.gguf_mixes import MIXES
from services.architectures.output_spec import OutputSpec
from services.checkpoints.folder_spec import FolderSpec
from services.checkpoints.gguf_plans import gguf_plans
from services.checkpoints.gguf_tokens import add_tokenizer
from services.checkpoints.write_ledger import TensorPlan
from services.files.disk_full import disk_full_as_error

ROPE_FACTORS = "rope_freqs.weight"

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}


def encode_header(path: Path, spec: FolderSpec, plans: Iterable[TensorPlan]) -> bytes:
    """Returns the header of a file: metadata, tokenizer and the positions of the planned tensors.

    The package writes to a file only. That one lies next to `path`, where a killed run's file is kept.

    Raises:
        DiskFull: The volume has no space for the header.
        UnreadableFile: A file of the tokenizer is damaged.
    """
    header_file = path.with_suffix(".header")
    writer = gguf.GGUFWriter(path=None, arch=gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    _add_parameters(writer, spec.output)
    add_tokenizer(writer, spec)
    for plan in plans:
        encoding = gguf.GGMLQuantizationType[plan.dtype]
        writer.add_tensor_info(
            plan.name, plan.shape, torch.empty(0).numpy().dtype, plan.size_bytes, raw_dtype=encoding
        )
    with disk_full_as_error(path, 0):
        writer.write_header_to_file(header_file)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
    header = header_file.read_bytes()
    header_file.unlink()
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
    _add_scaling(writer, config)
    mix = MIXES.get(output.dtype or "")
    writer.add_file_type(mix.file_type if mix else FILE_TYPES[_main_encoding(output)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_scaling(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    if config.rope_type == "linear" and config.rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(config.rope_scaling["factor"]))


def _main_encoding(output: OutputSpec) -> str:
    """Returns the encoding of the most bytes."""
    sizes: dict[str, int] = {}
    for plan in gguf_plans(output).values():
        sizes[plan.dtype] = sizes.get(plan.dtype, 0) + plan.size_bytes
    return max(sizes, key=lambda encoding: sizes[encoding])


def rope_factors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Returns Llama 3's frequency factors by name: float32 of shape (head_dim / 2,). Empty for other scalings.

    Source: llama.cpp `convert_hf_to_gguf.py`, LlamaModel.generate_extra_tensors; the formula is apply_scaling of
    meta-llama/llama-models `model.py`, whose frequency is divided by the factor.
    """
    scaling = config.rope_scaling or {}
    if config.rope_type != "llama3":
        return {}
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    wavelengths = 2 * math.pi * config.rope_theta**exponents
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(wavelengths > context / low, torch.full_like(between, factor), between)
    return {ROPE_FACTORS: torch.where(wavelengths < context / high, torch.ones_like(between), factors)}
