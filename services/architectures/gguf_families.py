"""Families that are read from GGUF: names of their tensors, and their configuration from the metadata.

The names are those of the `gguf` package's own maps, which a test compares; the API does not import it. Keys and the changes that
llama.cpp makes to tensors are those of its converter (ggml-org/llama.cpp `convert_hf_to_gguf.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.architectures.gguf_configs import (
    LONG_FACTORS,
    SHORT_FACTORS,
    gemma2_config,
    gemma3_config,
    llama_config,
    phi3_config,
    qwen2_config,
    qwen3_config,
)
from services.architectures.gguf_rope import FACTORS
from services.architectures.gguf_values import ArchitectureValues
from services.architectures.key_map import kind_of
from services.files.gguf_files import GgufModel
from services.files.json_file import Json

_HF, _GGUF = "model.layers.{}.", "blk.{}."

_TIED = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
_OUTSIDE_LAYERS = _TIED | {"lm_head": "output"}
_ATTENTION = {
    f"{_HF}self_attn.q_proj": f"{_GGUF}attn_q", f"{_HF}self_attn.k_proj": f"{_GGUF}attn_k",
    f"{_HF}self_attn.v_proj": f"{_GGUF}attn_v", f"{_HF}self_attn.o_proj": f"{_GGUF}attn_output",
}  # fmt: skip
_MLP = {
    f"{_HF}mlp.gate_proj": f"{_GGUF}ffn_gate", f"{_HF}mlp.up_proj": f"{_GGUF}ffn_up", f"{_HF}mlp.down_proj": f"{_GGUF}ffn_down",
}  # fmt: skip
_NORMS = {f"{_HF}input_layernorm": f"{_GGUF}attn_norm", f"{_HF}post_attention_layernorm": f"{_GGUF}ffn_norm"}

_HEAD_NORMS = {
    f"{_HF}self_attn.q_norm": f"{_GGUF}attn_q_norm",
    f"{_HF}self_attn.k_norm": f"{_GGUF}attn_k_norm",
}
_FUSED = {
    f"{_HF}self_attn.qkv_proj": f"{_GGUF}attn_qkv", f"{_HF}self_attn.o_proj": f"{_GGUF}attn_output",
    f"{_HF}mlp.gate_up_proj": f"{_GGUF}ffn_up", f"{_HF}mlp.down_proj": f"{_GGUF}ffn_down",
}  # fmt: skip
_GEMMA_NORMS = {
    f"{_HF}input_layernorm": f"{_GGUF}attn_norm", f"{_HF}post_attention_layernorm": f"{_GGUF}post_attention_norm",
    f"{_HF}pre_feedforward_layernorm": f"{_GGUF}ffn_norm", f"{_HF}post_feedforward_layernorm": f"{_GGUF}post_ffw_norm",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GgufFamily:
    """One value of `general.architecture`.

    Attributes:
        names: GGUF's names by Hugging Face's, both without `.weight` and `.bias` and with `{}` for the layer's number.
        config: Returns the keys of `config.json` that are not the tokenizer's.
        norm_offset: Number that llama.cpp adds to the weights of norms.
        ignored: Tensors that `rope_scaling` stands for.
    """

    names: Mapping[str, str]
    config: Callable[[ArchitectureValues, GgufModel], Json]
    norm_offset: float = 0.0
    ignored: tuple[str, ...] = ()

    def gguf_name(self, name: str) -> str:
        """Returns GGUF's name of a tensor, from Hugging Face's."""
        kind, layer = kind_of(name)
        stem, _, suffix = kind.rpartition(".")
        return f"{self.names[stem].format(layer)}.{suffix}"

    def offset(self, name: str) -> float:
        """Returns the number that is subtracted from a tensor, by Hugging Face's name."""
        return self.norm_offset if name.endswith("norm.weight") else 0.0


GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily(names=_OUTSIDE_LAYERS | _ATTENTION | _MLP | _NORMS, config=llama_config, ignored=(FACTORS,)),
    "qwen2": GgufFamily(names=_OUTSIDE_LAYERS | _ATTENTION | _MLP | _NORMS, config=qwen2_config),
    "qwen3": GgufFamily(names=_OUTSIDE_LAYERS | _ATTENTION | _HEAD_NORMS | _MLP | _NORMS, config=qwen3_config),
    "phi3": GgufFamily(
        names=_OUTSIDE_LAYERS | _FUSED | _NORMS, config=phi3_config, ignored=(LONG_FACTORS, SHORT_FACTORS)
    ),
    "gemma2": GgufFamily(
        names=_TIED | _ATTENTION | _MLP | _GEMMA_NORMS, config=gemma2_config, norm_offset=1.0
    ),
    "gemma3": GgufFamily(
        names=_OUTSIDE_LAYERS | _ATTENTION | _HEAD_NORMS | _MLP | _GEMMA_NORMS, config=gemma3_config, norm_offset=1.0
    ),
}  # fmt: skip
"""Families by `general.architecture`. Mistral's models and others of LLaMA's construction are "llama" in GGUF."""
