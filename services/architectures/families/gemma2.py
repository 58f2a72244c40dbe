"""Gemma 2: four norms a layer, tied embeddings (transformers `modeling_gemma2.py`)."""

from services.architectures.family import (
    ATTENTION,
    ATTENTION_BIAS,
    MLP,
    NORMS,
    OUTSIDE_LAYERS,
    Family,
    norm,
)

GEMMA_NORMS = (*NORMS, norm("pre_feedforward_layernorm"), norm("post_feedforward_layernorm"))
"""Rows of the four norms of a layer. The weights are offsets from one: a norm multiplies by `1 + weight`."""

GEMMA_DEFAULTS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
}  # fmt: skip
"""Values that the configurations of Gemma 2 and 3 share."""

GEMMA2 = Family(
    name="gemma2",
    title="Gemma 2",
    model_types=("gemma2",),
    architecture="Gemma2ForCausalLM",
    rows=(*OUTSIDE_LAYERS, *ATTENTION, *ATTENTION_BIAS, *MLP, *GEMMA_NORMS),
    config_defaults={**GEMMA_DEFAULTS, "vocab_size": 256000, "max_position_embeddings": 8192},
    gguf="gemma2",
)
"""The family."""
