"""Model folders written by hand, without a tensor library: headers as they should be, every value zero.

Format: https://github.com/huggingface/safetensors#format.
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.reference.tokenizer_files import piece_names, sentencepiece_file

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I64": 8}

Shapes = Mapping[str, tuple[int, ...]]


def safetensors_file(shapes: Shapes, dtype: str = "F16") -> bytes:
    """A safetensors file of zeros."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(offset)


def llama_shapes(
    *, hidden: int = 48, layers: int = 3, kv: int = 24, ffn: int = 140, rows: int = 101
) -> Shapes:
    """Hugging Face's names of a whole model; 8 heads of 6 and 4 key-value heads unless told otherwise."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {at + f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qo"}
        shapes |= {at + f"self_attn.{name}_proj.weight": (kv, hidden) for name in "kv"}
        shapes |= {at + f"mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        shapes[at + "mlp.down_proj.weight"] = (hidden, ffn)
        shapes |= {at + f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    return {**shapes, "model.norm.weight": (hidden,), "lm_head.weight": (rows, hidden)}


def llama_config(
    *, hidden: int = 48, layers: int = 3, kv_heads: int = 4, ffn: int = 140, rows: int = 101
) -> dict[str, Any]:
    return {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": 8,
        "num_key_value_heads": kv_heads, "vocab_size": rows, "rms_norm_eps": 1e-5, "torch_dtype": "float16",
    }  # fmt: skip


def write_base(folder: Path, *, rows: int = 101, pieces: int | None = None, **config: Any) -> Path:
    """A Hugging Face base of zeros with a tokenizer of as many pieces as there are rows."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**llama_config(rows=rows), **config}))
    (folder / "model.safetensors").write_bytes(safetensors_file(llama_shapes(rows=rows)))
    (folder / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(pieces or rows)))
    return folder


def pair_shapes(*, r: int = 8, hidden: int = 48, kv: int = 24, layers: int = 3) -> dict[str, tuple[int, ...]]:
    """The halves of an adapter on q_proj and v_proj, with PEFT's names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        at = f"base_model.model.model.layers.{layer}.self_attn."
        shapes |= {at + "q_proj.lora_A.weight": (r, hidden), at + "q_proj.lora_B.weight": (hidden, r)}
        shapes |= {at + "v_proj.lora_A.weight": (r, hidden), at + "v_proj.lora_B.weight": (kv, r)}
    return shapes


def embedding_shapes(
    rows: int, *, head_rows: int | None = None, hidden: int = 48
) -> dict[str, tuple[int, ...]]:
    """Embeddings that an adapter brings whole."""
    prefix = "base_model.model."
    return {
        prefix + "model.embed_tokens.weight": (rows, hidden),
        prefix + "lm_head.weight": (rows if head_rows is None else head_rows, hidden),
    }


def write_adapter(
    folder: Path,
    shapes: Shapes | None = None,
    *,
    pieces: int | None = None,
    dtype: str = "F16",
    **config: Any,
) -> Path:
    """An adapter of zeros, rank 8, on q_proj and v_proj; `pieces` gives it a tokenizer of that many."""
    folder.mkdir(parents=True)
    known = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**known, **config}))
    content = safetensors_file(pair_shapes() if shapes is None else shapes, dtype)
    (folder / "adapter_model.safetensors").write_bytes(content)
    if pieces is not None:
        (folder / "tokenizer.model").write_bytes(sentencepiece_file(piece_names(pieces)))
    return folder
