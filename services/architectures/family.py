"""Model families: transformers' class of a model type, its table of tensors, and the names of its checkpoints.

Three sets of names meet here. A checkpoint's file has names of its own, which all outputs keep. Adapters name the modules of
transformers' class. The rows of a family's table have the names of its text model alone. For most models the three are equal.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from services.architectures.key_map import Join, Rotary, Row, Shape, Sizes, kind_of

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"

INV_FREQ = r"(.+\.)?rotary_emb\.inv_freq"
"""Rotary frequencies, which some checkpoints hold: they follow from the configuration and are dropped."""


@dataclass(frozen=True, kw_only=True)
class ModelClass:
    """Transformers' class of a model type, and how a checkpoint's configuration and names relate to it.

    Attributes:
        architecture: Name of the class ("Qwen3ForCausalLM").
        config_defaults: Values of the configuration's class where `config.json` is silent; without a value here
            `num_key_value_heads` is the number of heads, `head_dim` the hidden size by the number of heads.
        config_key: Key of `config.json` under which the text model's configuration nests, None if it does not.
        keys: Names in `config.json` that differ from those of `ModelConfig`.
        renames: Prefixes of names in a checkpoint's file and the prefixes of the class's names; the first that fits applies.
        text_prefixes: Prefix of the text model within the class, and the prefix that the table of rows has for it.
        towers: Prefixes of the class's names that do not belong to the text model: they are copied.
        conv1d: Last parts of the names of modules that are transformers' Conv1D, whose weights are transposed.
        dropped: Regular expression of names that are dropped, since the class computes those tensors.
        embeddings: Name of the input embedding in the table of rows.
        head: Name of the output head in the table of rows.
    """

    architecture: str
    config_defaults: Mapping[str, Any] = field(default_factory=dict)
    config_key: str | None = None
    keys: Mapping[str, str] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    text_prefixes: tuple[str, str] = ("", "")
    towers: tuple[str, ...] = ()
    conv1d: tuple[str, ...] = ()
    dropped: str = INV_FREQ
    embeddings: str = EMBEDDINGS
    head: str = HEAD

    def module_name(self, name: str) -> str:
        """Returns the class's name of a tensor, from its name in a checkpoint's file."""
        for own, module in self.renames:
            if name.startswith(own):
                return module + name.removeprefix(own)
        return name

    def file_name(self, module: str, *, renamed: bool) -> str:
        """Returns the name that a tensor of the class has in a checkpoint's file, whose names are renamed ones or the class's own."""
        for own, prefix in self.renames if renamed else ():
            if module.startswith(prefix):
                return own + module.removeprefix(prefix)
        return module

    def text_name(self, name: str) -> str | None:
        """Returns the table's name of a tensor, from either of its other names; None if it is not of the text model."""
        module = self.module_name(name)
        if module.startswith(self.towers):
            return None
        own, text = self.text_prefixes
        return text + module.removeprefix(own) if own and module.startswith(own) else module

    def is_dropped(self, name: str) -> bool:
        """Returns True for a tensor of a checkpoint's file that the class computes."""
        return re.fullmatch(self.dropped, name) is not None


@dataclass(frozen=True, kw_only=True)
class Family(ModelClass):
    """Dense models of one construction, described tensor by tensor.

    Attributes:
        name: Word for the family in messages and tables of the project.
        title: Display name.
        model_types: Values of `model_type` in `config.json`.
        rows: Table of tensors, one row per kind.
        gguf: `general.architecture` of its GGUF files, None if GGUF cannot hold it.
        writes_meta: Meta's layout can hold it.
    """

    name: str
    title: str
    model_types: tuple[str, ...]
    rows: tuple[Row, ...]
    gguf: str | None = None
    writes_meta: bool = False

    @cached_property
    def by_name(self) -> Mapping[str, Row]:
        """Rows by their names, with `{}` for the layer's number."""
        return {row.huggingface: row for row in self.rows if row.huggingface is not None}

    def row_of(self, name: str) -> Row | None:
        """Returns the row of a tensor of the text model by either of its names, None if the table has none."""
        text = self.text_name(name)
        return None if text is None else self.by_name.get(kind_of(text)[0])


LAYER = "model.layers.{}."


def matrix(name: str, shape: Callable[[Sizes], Shape], rotary: Rotary = Rotary.NO) -> Row:
    """Returns the row of a layer's weight that Meta's layout does not have."""
    return Row(None, f"{LAYER}{name}.weight", Join.ROWS, shape, rotary)


def bias(
    name: str,
    shape: Callable[[Sizes], Shape],
    needed: Callable[[Sizes], bool] = lambda config: True,
    rotary: Rotary = Rotary.NO,
) -> Row:
    """Returns the row of a layer's bias."""
    return Row(None, f"{LAYER}{name}.bias", Join.ROWS, shape, rotary, needed)


def norm(name: str, shape: Callable[[Sizes], Shape] = lambda c: (c.hidden_size,)) -> Row:
    """Returns the row of a layer's norm, by default as wide as the hidden state."""
    return Row(None, f"{LAYER}{name}.weight", Join.REPLICATED, shape)


def query_rows(c: Sizes) -> int:
    """Returns the rows of the query projection."""
    return c.num_attention_heads * c.head_dim


def key_rows(c: Sizes) -> int:
    """Returns the rows of the key projection, which are those of the value projection too."""
    return c.num_key_value_heads * c.head_dim


OUTSIDE_LAYERS: tuple[Row, ...] = (
    Row(None, EMBEDDINGS, Join.EMBEDDING, lambda c: (c.vocab_size, c.hidden_size)),
    Row(None, "model.norm.weight", Join.REPLICATED, lambda c: (c.hidden_size,)),
    Row(None, HEAD, Join.ROWS, lambda c: (c.vocab_size, c.hidden_size), needed=lambda c: not c.tie_word_embeddings),
)  # fmt: skip
"""Rows of the embedding, the last norm and the head."""

ATTENTION: tuple[Row, ...] = (
    matrix("self_attn.q_proj", lambda c: (query_rows(c), c.hidden_size)),
    matrix("self_attn.k_proj", lambda c: (key_rows(c), c.hidden_size)),
    matrix("self_attn.v_proj", lambda c: (key_rows(c), c.hidden_size)),
    matrix("self_attn.o_proj", lambda c: (c.hidden_size, query_rows(c))),
)
"""Rows of the four projections of attention."""

ATTENTION_BIAS: tuple[Row, ...] = (
    bias("self_attn.q_proj", lambda c: (query_rows(c),), lambda c: c.attention_bias),
    bias("self_attn.k_proj", lambda c: (key_rows(c),), lambda c: c.attention_bias),
    bias("self_attn.v_proj", lambda c: (key_rows(c),), lambda c: c.attention_bias),
    bias("self_attn.o_proj", lambda c: (c.hidden_size,), lambda c: c.attention_bias),
)
"""Rows of the biases that `attention_bias` switches on."""

HEAD_NORMS: tuple[Row, ...] = (
    norm("self_attn.q_norm", lambda c: (c.head_dim,)),
    norm("self_attn.k_norm", lambda c: (c.head_dim,)),
)
"""Rows of the norms of each head's query and key."""

MLP: tuple[Row, ...] = (
    matrix("mlp.gate_proj", lambda c: (c.intermediate_size, c.hidden_size)),
    matrix("mlp.up_proj", lambda c: (c.intermediate_size, c.hidden_size)),
    matrix("mlp.down_proj", lambda c: (c.hidden_size, c.intermediate_size)),
)
"""Rows of the gated feed-forward network."""

NORMS: tuple[Row, ...] = (norm("input_layernorm"), norm("post_attention_layernorm"))
"""Rows of the two norms of a layer."""
