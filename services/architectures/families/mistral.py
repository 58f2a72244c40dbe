"""Mistral: LLaMA's tensors with grouped key-value heads and a window of attention (transformers `modeling_mistral.py`)."""

from services.architectures.family import MLP, NORMS, OUTSIDE_LAYERS, Family, key_rows, matrix, query_rows
from services.architectures.key_map import Rotary

MISTRAL = Family(
    name="mistral",
    title="Mistral",
    model_types=("mistral",),
    architecture="MistralForCausalLM",
    rows=(
        *OUTSIDE_LAYERS,
        matrix("self_attn.q_proj", lambda c: (query_rows(c), c.hidden_size), Rotary.QUERY),
        matrix("self_attn.k_proj", lambda c: (key_rows(c), c.hidden_size), Rotary.KEY),
        matrix("self_attn.v_proj", lambda c: (key_rows(c), c.hidden_size)),
        matrix("self_attn.o_proj", lambda c: (c.hidden_size, query_rows(c))),
        *MLP,
        *NORMS,
    ),
    config_defaults={
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    gguf="llama",
)  # fmt: skip
"""The family. GGUF files of it are of the architecture llama, with its order of rotary rows."""
