"""LLaMA 1 to 3.x, and what calls itself llama: Yi, SmolLM, DeepSeek's distilled models.

Sources: facebookresearch/llama `model.py` (ColumnParallelLinear splits the rows, RowParallelLinear and ParallelEmbedding the
columns) and transformers `convert_llama_weights_to_hf.py`.
"""

from collections.abc import Mapping

from services.architectures.family import Family, key_rows, query_rows
from services.architectures.key_map import Join, Rotary, Row

_META, _HF = "layers.{}.", "model.layers.{}."

TABLE: tuple[Row, ...] = (
    Row("tok_embeddings.weight", "model.embed_tokens.weight", Join.EMBEDDING,
        lambda c: (c.vocab_size, c.hidden_size)),
    Row(_META + "attention.wq.weight", _HF + "self_attn.q_proj.weight", Join.ROWS,
        lambda c: (query_rows(c), c.hidden_size), Rotary.QUERY),
    Row(_META + "attention.wk.weight", _HF + "self_attn.k_proj.weight", Join.ROWS,
        lambda c: (key_rows(c), c.hidden_size), Rotary.KEY),
    Row(_META + "attention.wv.weight", _HF + "self_attn.v_proj.weight", Join.ROWS,
        lambda c: (key_rows(c), c.hidden_size)),
    Row(_META + "attention.wo.weight", _HF + "self_attn.o_proj.weight", Join.COLUMNS,
        lambda c: (c.hidden_size, query_rows(c))),
    Row(_META + "feed_forward.w1.weight", _HF + "mlp.gate_proj.weight", Join.ROWS,
        lambda c: (c.intermediate_size, c.hidden_size)),
    Row(_META + "feed_forward.w3.weight", _HF + "mlp.up_proj.weight", Join.ROWS,
        lambda c: (c.intermediate_size, c.hidden_size)),
    Row(_META + "feed_forward.w2.weight", _HF + "mlp.down_proj.weight", Join.COLUMNS,
        lambda c: (c.hidden_size, c.intermediate_size)),
    Row(_META + "attention_norm.weight", _HF + "input_layernorm.weight", Join.REPLICATED,
        lambda c: (c.hidden_size,)),
    Row(_META + "ffn_norm.weight", _HF + "post_attention_layernorm.weight", Join.REPLICATED,
        lambda c: (c.hidden_size,)),
    Row("norm.weight", "model.norm.weight", Join.REPLICATED, lambda c: (c.hidden_size,)),
    Row("output.weight", "lm_head.weight", Join.ROWS, lambda c: (c.vocab_size, c.hidden_size),
        needed=lambda c: not c.tie_word_embeddings),
    # Hugging Face's optional biases; Meta's layout has none.
    Row(None, _HF + "self_attn.q_proj.bias", Join.ROWS, lambda c: (query_rows(c),), Rotary.QUERY, lambda c: c.attention_bias),
    Row(None, _HF + "self_attn.k_proj.bias", Join.ROWS, lambda c: (key_rows(c),), Rotary.KEY, lambda c: c.attention_bias),
    Row(None, _HF + "self_attn.v_proj.bias", Join.ROWS, lambda c: (key_rows(c),), needed=lambda c: c.attention_bias),
    Row(None, _HF + "self_attn.o_proj.bias", Join.REPLICATED, lambda c: (c.hidden_size,), needed=lambda c: c.attention_bias),
    Row(None, _HF + "mlp.gate_proj.bias", Join.ROWS, lambda c: (c.intermediate_size,), needed=lambda c: c.mlp_bias),
    Row(None, _HF + "mlp.up_proj.bias", Join.ROWS, lambda c: (c.intermediate_size,), needed=lambda c: c.mlp_bias),
    Row(None, _HF + "mlp.down_proj.bias", Join.REPLICATED, lambda c: (c.hidden_size,), needed=lambda c: c.mlp_bias),
    # Dropped: the rotary frequencies follow from rope_theta and head_dim.
    Row("rope.freqs", None, Join.DROPPED, None),
    Row(_META + "attention.inner_attention.rope.freqs", None, Join.DROPPED, None),
    Row(None, _HF + "self_attn.rotary_emb.inv_freq", Join.DROPPED, None),
    Row(None, "model.rotary_emb.inv_freq", Join.DROPPED, None),
)  # fmt: skip

LLAMA = Family(
    name="llama",
    title="LLaMA",
    model_types=("llama",),
    architecture="LlamaForCausalLM",
    rows=TABLE,
    config_defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    gguf="llama",
    writes_meta=True,
)
"""The family."""

BY_META: Mapping[str, Row] = {row.meta: row for row in TABLE if row.meta is not None}
"""Rows by Meta's names, with `{}` for the layer's number."""
