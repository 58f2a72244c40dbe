"""Families that are read from GGUF: names of their tensors, and their configuration from the metadata.

The names are those of the `gguf` package's own maps, which a test compares; the API does not import it. Keys and the changes that
llama.cpp makes to tensors are those of its converter (ggml-org/llama.cpp `convert_hf_to_gguf.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.architectures.config import ROPE_THETA_DEFAULT
from services.architectures.gguf_rope import rope_scaling
from services.architectures.gguf_values import ArchitectureValues
from services.architectures.key_map import kind_of
from services.errors import ConfigMismatch, IncompleteCheckpoint
from services.files.gguf_files import GgufModel
from services.files.json_file import Json

EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"

_HF, _GGUF = "model.layers.{}.", "blk.{}."

_OUTSIDE_LAYERS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_ATTENTION = {
    f"{_HF}self_attn.q_proj": f"{_GGUF}attn_q", f"{_HF}self_attn.k_proj": f"{_GGUF}attn_k",
    f"{_HF}self_attn.v_proj": f"{_GGUF}attn_v", f"{_HF}self_attn.o_proj": f"{_GGUF}attn_output",
}  # fmt: skip
_MLP = {
    f"{_HF}mlp.gate_proj": f"{_GGUF}ffn_gate", f"{_HF}mlp.up_proj": f"{_GGUF}ffn_up", f"{_HF}mlp.down_proj": f"{_GGUF}ffn_down",
}  # fmt: skip
_NORMS = {f"{_HF}input_layernorm": f"{_GGUF}attn_norm", f"{_HF}post_attention_layernorm": f"{_GGUF}ffn_norm"}


@dataclass(frozen=True, kw_only=True)
class GgufFamily:
    """One value of `general.architecture`.

    Attributes:
        model_type: Of the `config.json` that is written.
        names: GGUF's names by Hugging Face's, both without `.weight` and `.bias` and with `{}` for the layer's number.
        config: Returns the keys of `config.json` that are not the tokenizer's.
        norm_offset: Number that llama.cpp adds to the weights of norms.
    """

    model_type: str
    names: Mapping[str, str]
    config: Callable[[ArchitectureValues, GgufModel], Json]
    norm_offset: float = 0.0

    def gguf_name(self, name: str) -> str:
        """Returns GGUF's name of a tensor, from Hugging Face's."""
        kind, layer = kind_of(name)
        stem, _, suffix = kind.rpartition(".")
        return f"{self.names[stem].format(layer)}.{suffix}"

    def offset(self, name: str) -> float:
        """Returns the number that is subtracted from a tensor, by Hugging Face's name."""
        return self.norm_offset if name.endswith("norm.weight") else 0.0


def llama_config(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the configuration of a LLaMA model; what has experts or a window is refused."""
    sizes = _sizes(values, model)
    theta = values.number("rope.freq_base", ROPE_THETA_DEFAULT)
    values.expect("rope.dimension_count", sizes["head_dim"])
    for key in ("expert_count", "expert_used_count", "attention.sliding_window"):
        values.expect(key, 0)
    values.expect("attention.causal", True)
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **sizes,
        "rope_theta": theta, "rope_scaling": rope_scaling(values, model, sizes["head_dim"], theta),
        "attention_bias": "blk.0.attn_q.bias" in model.tensors, "mlp_bias": "blk.0.ffn_gate.bias" in model.tensors,
    }  # fmt: skip


def _sizes(values: ArchitectureValues, model: GgufModel) -> Json:
    """Returns the values that every family has."""
    hidden, heads = values.size("embedding_length"), values.size("attention.head_count")
    head_dim = values.size("attention.key_length", max(1, hidden // heads))
    values.expect("attention.value_length", head_dim)
    rows = _embedding_rows(values, model)
    return {
        "hidden_size": hidden, "intermediate_size": values.size("feed_forward_length"),
        "num_hidden_layers": values.size("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": values.size("attention.head_count_kv", heads), "head_dim": head_dim,
        "vocab_size": rows, "max_position_embeddings": values.size("context_length"),
        "rms_norm_eps": values.number("attention.layer_norm_rms_epsilon"), "tie_word_embeddings": HEAD not in model.tensors,
    }  # fmt: skip


def _embedding_rows(values: ArchitectureValues, model: GgufModel) -> int:
    embeddings = model.tensors.get(EMBEDDINGS)
    if embeddings is None:
        raise IncompleteCheckpoint(
            f"{model.name} has no {EMBEDDINGS!r}.", "Fetch the model again; all its files are needed."
        )
    rows = embeddings.shape[0]
    stated = values.size("vocab_size", rows)
    if stated != rows:
        raise ConfigMismatch(
            f"{model.name} says vocab_size = {stated}; {EMBEDDINGS!r} has {rows} rows.",
            "The file is damaged or was made by another program: fetch it again.",
        )
    return rows


GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily(
        model_type="llama", names=_OUTSIDE_LAYERS | _ATTENTION | _MLP | _NORMS, config=llama_config
    ),
}
"""Families by `general.architecture`. Mistral's models and others of LLaMA's construction are "llama" in GGUF."""
