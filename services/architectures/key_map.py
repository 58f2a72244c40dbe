"""Table of a LLaMA model's tensors, one row per kind.

A row gives Meta's name, Hugging Face's name, the dimension on which model-parallel ranks join, and the order of rows. Both
directions of a conversion read this table. A key without a row is an error; tensors that are dropped have a row that says so. Source: facebookresearch/llama `model.py` (ColumnParallelLinear splits the
rows, RowParallelLinear and ParallelEmbedding the columns) and transformers `convert_llama_weights_to_hf.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from services.architectures.config import ModelConfig

Shape = tuple[int, ...]


class Join(Enum):
    """Way in which the parts of several ranks make one tensor."""

    ROWS = "rows"
    COLUMNS = "columns"
    REPLICATED = "replicated"
    EMBEDDING = "embedding"  # columns up to Llama 2, rows from Llama 3 on, by the shapes
    DROPPED = "dropped"  # computed from the configuration, never written


class Rotary(Enum):
    """Heads by which rows are permuted between Meta's interleaved pairs and Hugging Face's halves."""

    NO = "no"
    QUERY = "query"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of tensor; `{}` in a name is the layer's number."""

    meta: str | None
    huggingface: str | None
    join: Join
    shape: Callable[[ModelConfig], Shape] | None
    rotary: Rotary = Rotary.NO
    needed: Callable[[ModelConfig], bool] = lambda config: True


def _query_rows(c: ModelConfig) -> int:
    return c.num_attention_heads * c.head_dim


def _key_rows(c: ModelConfig) -> int:
    return c.num_key_value_heads * c.head_dim


def _attention_bias(c: ModelConfig) -> bool:
    return c.attention_bias


def _mlp_bias(c: ModelConfig) -> bool:
    return c.mlp_bias


_META, _HF = "layers.{}.", "model.layers.{}."

TABLE: tuple[Row, ...] = (
    Row("tok_embeddings.weight", "model.embed_tokens.weight", Join.EMBEDDING,
        lambda c: (c.vocab_size, c.hidden_size)),
    Row(_META + "attention.wq.weight", _HF + "self_attn.q_proj.weight", Join.ROWS,
        lambda c: (_query_rows(c), c.hidden_size), Rotary.QUERY),
    Row(_META + "attention.wk.weight", _HF + "self_attn.k_proj.weight", Join.ROWS,
        lambda c: (_key_rows(c), c.hidden_size), Rotary.KEY),
    Row(_META + "attention.wv.weight", _HF + "self_attn.v_proj.weight", Join.ROWS,
        lambda c: (_key_rows(c), c.hidden_size)),
    Row(_META + "attention.wo.weight", _HF + "self_attn.o_proj.weight", Join.COLUMNS,
        lambda c: (c.hidden_size, _query_rows(c))),
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
    Row(None, _HF + "self_attn.q_proj.bias", Join.ROWS, lambda c: (_query_rows(c),), Rotary.QUERY, _attention_bias),
    Row(None, _HF + "self_attn.k_proj.bias", Join.ROWS, lambda c: (_key_rows(c),), Rotary.KEY, _attention_bias),
    Row(None, _HF + "self_attn.v_proj.bias", Join.ROWS, lambda c: (_key_rows(c),), needed=_attention_bias),
    Row(None, _HF + "self_attn.o_proj.bias", Join.REPLICATED, lambda c: (c.hidden_size,), needed=_attention_bias),
    Row(None, _HF + "mlp.gate_proj.bias", Join.ROWS, lambda c: (c.intermediate_size,), needed=_mlp_bias),
    Row(None, _HF + "mlp.up_proj.bias", Join.ROWS, lambda c: (c.intermediate_size,), needed=_mlp_bias),
    Row(None, _HF + "mlp.down_proj.bias", Join.REPLICATED, lambda c: (c.hidden_size,), needed=_mlp_bias),
    # Dropped: the rotary frequencies follow from rope_theta and head_dim.
    Row("rope.freqs", None, Join.DROPPED, None),
    Row(_META + "attention.inner_attention.rope.freqs", None, Join.DROPPED, None),
    Row(None, _HF + "self_attn.rotary_emb.inv_freq", Join.DROPPED, None),
    Row(None, "model.rotary_emb.inv_freq", Join.DROPPED, None),
)  # fmt: skip

_LAYER = re.compile(r"(?<=layers\.)[0-9]{1,6}(?=\.)")


def kind_of(name: str) -> tuple[str, int | None]:
    """Returns a tensor's name with `{}` for the layer's number, and that number."""
    match = _LAYER.search(name)
    return (name, None) if match is None else (_LAYER.sub("{}", name, count=1), int(match[0]))


def _by_name(side: str) -> dict[str, Row]:
    return {name: row for row in TABLE if (name := getattr(row, side)) is not None}


BY_META = _by_name("meta")
BY_HUGGINGFACE = _by_name("huggingface")


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor that a model of some configuration must have."""

    row: Row
    layer: int | None
    shape: Shape

    @property
    def huggingface(self) -> str:
        """Hugging Face's name."""
        assert self.row.huggingface is not None
        return self.row.huggingface.format(self.layer)

    @property
    def meta(self) -> str | None:
        """Meta's name, None if that layout has no such tensor."""
        return None if self.row.meta is None else self.row.meta.format(self.layer)


def expected_tensors(config: ModelConfig) -> list[Expected]:
    """Returns every tensor of a model of this configuration, embeddings first, then layer by layer."""
    rows = [row for row in TABLE if row.shape is not None and row.needed(config)]
    layered = [row for row in rows if "{}" in (row.huggingface or "")]
    first, last = rows[0], [row for row in rows[1:] if row not in layered]
    order: list[tuple[Row, int | None]] = [(first, None)]
    order += [(row, layer) for layer in range(config.num_hidden_layers) for row in layered]
    order += [(row, None) for row in last]
    return [Expected(row, layer, row.shape(config)) for row, layer in order if row.shape is not None]


def rotary_heads(row: Row, config: ModelConfig) -> int:
    """Returns the number of heads by which a kind of tensor is permuted between the layouts; 0 if it is not."""
    by_rotary = {
        Rotary.NO: 0,
        Rotary.QUERY: config.num_attention_heads,
        Rotary.KEY: config.num_key_value_heads,
    }
    return by_rotary[row.rotary]
