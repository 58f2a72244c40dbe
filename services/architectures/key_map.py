"""Rows of the families' tables of tensors, and the tensors that a configuration needs.

A row gives Meta's name (LLaMA only), Hugging Face's name, the dimension on which model-parallel ranks join, and the order of rows. Both
directions of a conversion read these tables (`services/architectures/families/`). A name without a row is an error; tensors that are
dropped have a row or an expression that says so.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

Shape = tuple[int, ...]


class Sizes(Protocol):
    """Values of a configuration from which the shapes of its tensors follow (`ModelConfig` has them)."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def attention_bias(self) -> bool: ...
    @property
    def mlp_bias(self) -> bool: ...


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
    shape: Callable[[Sizes], Shape] | None
    rotary: Rotary = Rotary.NO
    needed: Callable[[Sizes], bool] = lambda config: True


_LAYER = re.compile(r"(?<=layers\.)[0-9]{1,6}(?=\.)")


def kind_of(name: str) -> tuple[str, int | None]:
    """Returns a tensor's name with `{}` for the layer's number, and that number."""
    match = _LAYER.search(name)
    return (name, None) if match is None else (_LAYER.sub("{}", name, count=1), int(match[0]))


def rotary_heads(row: Row, config: Sizes) -> int:
    """Returns the number of heads by which a kind of tensor is permuted between the layouts; 0 if it is not."""
    by_rotary = {
        Rotary.NO: 0,
        Rotary.QUERY: config.num_attention_heads,
        Rotary.KEY: config.num_key_value_heads,
    }
    return by_rotary[row.rotary]
