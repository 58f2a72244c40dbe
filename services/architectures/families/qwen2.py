"""Qwen2 and Qwen2.5: biases on queries, keys and values (transformers `modeling_qwen2.py`)."""

from services.architectures.family import (
    ATTENTION,
    MLP,
    NORMS,
    OUTSIDE_LAYERS,
    Family,
    bias,
    key_rows,
    query_rows,
)

QWEN2 = Family(
    name="qwen2",
    title="Qwen2, Qwen2.5",
    model_types=("qwen2",),
    architecture="Qwen2ForCausalLM",
    rows=(
        *OUTSIDE_LAYERS,
        *ATTENTION,
        bias("self_attn.q_proj", lambda c: (query_rows(c),)),
        bias("self_attn.k_proj", lambda c: (key_rows(c),)),
        bias("self_attn.v_proj", lambda c: (key_rows(c),)),
        *MLP,
        *NORMS,
    ),
    config_defaults={
        "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 151936, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    gguf="qwen2",
)  # fmt: skip
"""The family."""
