"""GGUF files written by the `gguf` package alone, as llama.cpp's converter writes them (`convert_hf_to_gguf.py`)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from sentencepiece import SentencePieceProcessor

Encoding = gguf.GGMLQuantizationType
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""gguf.TokenType's numbers."""

ADDED_SCORE = -1000.0

AddTokenizer = Callable[[gguf.GGUFWriter], None]


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """LlamaModel.permute of the converter."""
    parts = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return parts.swapaxes(1, 2).reshape(weight.shape)


def save_gguf(
    path: Path,
    model: Any,
    tokenizer: AddTokenizer,
    *,
    architecture: str = "llama",
    encoding: str = "F16",
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    raw: Mapping[str, tuple[Any, Encoding]] | None = None,
    leave_out: Sequence[str] = (),
    norm_offset: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Writes a model of transformers; returns what each tensor holds after its encoding, float32 under Hugging Face's names.

    `metadata` replaces or, if None, removes values below the architecture's name; `extra` adds tensors, `raw` encoded ones.
    """
    writer = gguf.GGUFWriter(path, architecture)
    values = {**parameters(model.config), **(metadata or {})}
    for key, value in values.items():
        _add(writer, key if key.startswith("general.") else f"{architecture}.{key}", value)
    tokenizer(writer)
    held = {}
    number = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    for name, tensor in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name in tied or stored in leave_out:
            continue
        assert stored is not None, name
        offset = norm_offset if name.endswith("norm.weight") else 0.0
        held[name] = _add_tensor(writer, stored, name, tensor, model.config, architecture, encoding, offset)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor.numpy())
    for name, (data, kind) in (raw or {}).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def parameters(config: Any) -> dict[str, Any]:
    """Metadata of a configuration below the architecture's name."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.key_length": head_dim, "attention.value_length": head_dim,
        "rope.dimension_count": head_dim,
        "rope.freq_base": float(_rope(config)["rope_theta"]), "vocab_size": config.vocab_size,
    }  # fmt: skip


def _rope(config: Any) -> Mapping[str, Any]:
    found: Mapping[str, Any] = config.rope_parameters
    return found.get("full_attention", found)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    if value is not None:
        adds[type(value)](key, value)


def _add_tensor(
    writer: gguf.GGUFWriter, stored: str, name: str, tensor: torch.Tensor, config: Any, architecture: str, encoding: str,
    offset: float,
) -> torch.Tensor:  # fmt: skip
    values = tensor.float() + offset
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
        name.split(".")[-2], 0
    )
    heads = heads if architecture == "llama" else 0
    if heads:
        values = permuted(values, heads)
    kind = Encoding[encoding if values.ndim == 2 else "F32"]
    data = gguf.quants.quantize(values.contiguous().numpy(), kind)
    writer.add_tensor(stored, data, raw_dtype=kind)
    held = torch.from_numpy(gguf.quants.dequantize(data, kind).copy()) - offset
    return unpermuted(held, heads) if heads else held


def unpermuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Inverse of the converter's permutation, row by row."""
    size = weight.shape[0] // heads
    order = [
        head * size + 2 * (i % (size // 2)) + i // (size // 2) for head in range(heads) for i in range(size)
    ]
    return weight[order]


# ---- tokenizers ---------------------------------------------------------------------------------------


def sentencepiece_tokens(
    model: Path,
    *,
    rows: int | None = None,
    added: Sequence[tuple[str, int]] = (),
    more: Mapping[str, Any] | None = None,
) -> AddTokenizer:
    """`_create_vocab_sentencepiece` of the converter: the pieces, added tokens (text, type) after them, and padding to `rows`."""
    pieces = SentencePieceProcessor(model_file=str(model))
    tokens = [
        (pieces.id_to_piece(n), float(pieces.get_score(n)), _type_of(pieces, n))
        for n in range(pieces.vocab_size())
    ]
    tokens += [(text, ADDED_SCORE, kind) for text, kind in added]
    tokens += [(f"[PAD{n}]", -10000.0, UNUSED) for n in range(len(tokens), rows or 0)]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([text for text, _, _ in tokens])
        writer.add_token_scores([score for _, score, _ in tokens])
        writer.add_token_types([kind for _, _, kind in tokens])
        ids = {
            "bos_token_id": pieces.bos_id(),
            "eos_token_id": pieces.eos_id(),
            "unknown_token_id": pieces.unk_id(),
        }
        for key, value in {**ids, **(more or {})}.items():
            _add(writer, f"tokenizer.{key}" if key == "chat_template" else f"tokenizer.ggml.{key}", value)

    return add


def _type_of(pieces: Any, number: int) -> int:
    tests = (pieces.is_unknown, pieces.is_control, pieces.is_unused, pieces.is_byte)
    kinds = (UNKNOWN, CONTROL, UNUSED, BYTE)
    return next((kind for test, kind in zip(tests, kinds, strict=True) if test(number)), NORMAL)


def byte_level_tokens(
    tokens: Sequence[str],
    merges: Sequence[str],
    pre: str | None,
    *,
    types: Sequence[int] | None = None,
    rows: int = 0,
    **more: Any,
) -> AddTokenizer:
    """`_set_vocab_gpt2` of the converter: tokens in the byte alphabet, merges, and padding to `rows`."""
    size = max(rows, len(tokens))
    texts = [*tokens, *(f"[PAD{n}]" for n in range(len(tokens), size))]
    kinds = [*(types or [NORMAL] * len(tokens)), *([UNUSED] * (size - len(tokens)))]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(texts)
        writer.add_token_types(kinds)
        writer.add_token_merges(list(merges))
        for key, value in more.items():
            _add(writer, f"tokenizer.{key}" if key == "chat_template" else f"tokenizer.ggml.{key}", value)

    return add
