"""Qwen3: norms of each head's query and key, heads of a size of their own (transformers `modeling_qwen3.py`)."""

from services.architectures.family import (
    ATTENTION,
    ATTENTION_BIAS,
    HEAD_NORMS,
    MLP,
    NORMS,
    OUTSIDE_LAYERS,
    Family,
)

QWEN3 = Family(
    name="qwen3",
    title="Qwen3",
    model_types=("qwen3",),
    architecture="Qwen3ForCausalLM",
    rows=(*OUTSIDE_LAYERS, *ATTENTION, *ATTENTION_BIAS, *HEAD_NORMS, *MLP, *NORMS),
    config_defaults={
        "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    },
    gguf="qwen3",
)  # fmt: skip
"""The family."""
