"""Header of a GGUF file, written by the `gguf` package: metadata, tokenizer and the tensors' positions.

Keys and values are those of llama.cpp's converter (ggml-org/llama.cpp `conversion/`, set_gguf_parameters of each class).
"""

from collections.abc import Iterable
from pathlib import Path

import gguf
import torch

from services.architectures.config import ModelConfig
from services.architectures.gguf_mixes import MIXES
from services.architectures.gguf_support import support_of, windowed_layers
from services.architectures.output_spec import OutputSpec
from services.checkpoints.folder_spec import FolderSpec
from services.checkpoints.gguf_plans import architecture_of, gguf_plans
from services.checkpoints.gguf_rope import add_rope
from services.checkpoints.gguf_tokens import add_tokenizer
from services.checkpoints.write_ledger import TensorPlan
from services.files.disk_full import disk_full_as_error
from services.files.gguf_origin import GgufOrigin
from services.kinds.made_model import ImatrixSummary

FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}

IMATRIX_ENTRIES = "quantize.imatrix.entries_count"
"""Key that every file has whose matrices an importance matrix has weighed."""


def encode_header(path: Path, spec: FolderSpec, plans: Iterable[TensorPlan]) -> bytes:
    """Returns the header of a file: metadata, tokenizer and the positions of the planned tensors.

    The package writes to a file only. That one lies next to `path`, where a killed run's file is kept.

    Raises:
        DiskFull: The volume has no space for the header.
        UnreadableFile: A file of the tokenizer is damaged.
    """
    header_file = path.with_suffix(".header")
    writer = gguf.GGUFWriter(path=None, arch=architecture_of(spec.output.config))
    if spec.origin is not None:
        _add_origin(writer, spec.origin)
    _add_parameters(writer, spec.output)
    if spec.importance is not None:
        _add_importance(writer, spec.importance.summary)
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


def _add_origin(writer: gguf.GGUFWriter, origin: GgufOrigin) -> None:
    """Adds name, licence and base models."""
    for key, text in origin.texts.items():
        writer.add_string(f"general.{key}", text)
    if origin.bases:
        writer.add_base_model_count(len(origin.bases))
    for number, base in enumerate(origin.bases):
        for key, text in base.items():
            writer.add_string(f"general.base_model.{number}.{key}", text)


def _add_importance(writer: gguf.GGUFWriter, summary: ImatrixSummary) -> None:
    """Adds the importance matrix under llama-quantize's keys (ggml-org/llama.cpp `tools/quantize/quantize.cpp`)."""
    if summary.file is not None:
        writer.add_string("quantize.imatrix.file", summary.file)
    dataset = summary.text_file or next(iter(summary.datasets), None)
    if dataset is not None:
        writer.add_string("quantize.imatrix.dataset", dataset)
    writer.add_uint32(IMATRIX_ENTRIES, summary.entries)
    writer.add_uint32("quantize.imatrix.chunks_count", summary.chunks)


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
    writer.add_vocab_size(config.vocab_size)
    add_rope(writer, config)
    _add_gemma(writer, config)
    mix = MIXES.get(output.dtype or "")
    writer.add_file_type(mix.file_type if mix else FILE_TYPES[_main_encoding(output)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_gemma(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Adds the window, the layers that it applies to, and the limits of logits."""
    windowed, own = windowed_layers(config), config.text_source
    if architecture_of(config) == "phi3":
        writer.add_sliding_window(own.get("sliding_window") or 0)
    if windowed:
        writer.add_sliding_window(own.get("sliding_window") or 4096)
        facts = support_of(config)
        period = facts.window_period if facts else 0
        if windowed != [(layer + 1) % period != 0 for layer in range(config.num_hidden_layers)]:
            writer.add_sliding_window_pattern(windowed)
    for key, default, add in (
        ("attn_logit_softcapping", 50.0, writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", 30.0, writer.add_final_logit_softcapping),
    ):
        value = own.get(key, default if architecture_of(config) == "gemma2" else None)
        if value is not None and architecture_of(config).startswith("gemma"):
            add(float(value))


def _main_encoding(output: OutputSpec) -> str:
    """Returns the encoding of the most bytes."""
    sizes: dict[str, int] = {}
    for plan in gguf_plans(output).values():
        sizes[plan.dtype] = sizes.get(plan.dtype, 0) + plan.size_bytes
    return max(sizes, key=lambda encoding: sizes[encoding])
