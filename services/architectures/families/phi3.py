"""Phi-3 and Phi-4: queries, keys and values in one tensor, gate and up in one (transformers `modeling_phi3.py`)."""

from services.architectures.family import NORMS, OUTSIDE_LAYERS, Family, key_rows, matrix, query_rows

PHI3 = Family(
    name="phi3",
    title="Phi-3, Phi-4",
    model_types=("phi3",),
    architecture="Phi3ForCausalLM",
    rows=(
        *OUTSIDE_LAYERS,
        matrix("self_attn.qkv_proj", lambda c: (query_rows(c) + 2 * key_rows(c), c.hidden_size)),
        matrix("self_attn.o_proj", lambda c: (c.hidden_size, query_rows(c))),
        matrix("mlp.gate_up_proj", lambda c: (2 * c.intermediate_size, c.hidden_size)),
        matrix("mlp.down_proj", lambda c: (c.hidden_size, c.intermediate_size)),
        *NORMS,
    ),
    config_defaults={
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    gguf="phi3",
)  # fmt: skip
"""The family."""
