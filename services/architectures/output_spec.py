"""Formats in which a model is written: checks of the models that each can hold, and their sizes in bytes.

The preflight checks before a job is queued and the writers check before they begin, so that a refusal reads the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Literal

from services.architectures.config import ModelConfig
from services.architectures.expected_tensors import row_of
from services.architectures.gguf_mixes import ALIASES, MIXES
from services.architectures.gguf_output import check_gguf, gguf_bytes, gguf_warnings
from services.architectures.key_map import Join, Shape, kind_of, rotary_heads
from services.architectures.params import config_to_params, params_warnings
from services.architectures.vocabulary import Vocabulary
from services.errors import UnsupportedFormat, UnsupportedOption, VocabularyMismatch
from services.files.tensors import DTYPE_CODES, size_of

OutputFormat = Literal["huggingface", "meta", "gguf"]

OUTPUT_DTYPES = {
    **DTYPE_CODES,
    **{name.lower(): name for name in MIXES},
    **{name.lower(): mix for name, mix in ALIASES.items()},
}
"""Codes of the dtypes by their names in requests; the mixes of block encodings are GGUF's."""

LLAMA3_BOS = 128000


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """A model that is to be written.

    `tensors` are under Hugging Face's names, with the dtype and shape in which they are computed; `dtype` is the code that was
    requested, None to keep each tensor's own. `ranks` applies to Meta's layout, `has_imatrix` to GGUF.
    """

    format: OutputFormat
    config: ModelConfig
    tensors: Mapping[str, tuple[str, Shape]]
    vocabulary: Vocabulary | None
    dtype: str | None = None
    ranks: int = 1
    has_imatrix: bool = False


def plan_output(
    output_format: OutputFormat,
    config: ModelConfig,
    tensors: Mapping[str, tuple[str, Shape]],
    *,
    vocabulary: Vocabulary | None,
    dtype: str | None = None,
    ranks: int = 1,
    has_imatrix: bool = False,
) -> OutputSpec:
    """Returns the output of a model whose tensors have these dtypes and shapes, in the requested dtype.

    A GGUF file holds the text model alone.
    """
    computed = {
        name: (_computed_dtype(output_format, dtype, own, shape), shape)
        for name, (own, shape) in tensors.items()
        if output_format != "gguf" or config.model_class.text_name(name) is not None
    }
    return OutputSpec(output_format, config, computed, vocabulary, dtype, ranks, has_imatrix)


def _computed_dtype(output_format: OutputFormat, dtype: str | None, own: str, shape: Shape) -> str:
    """Returns the requested dtype, or the tensor's own if the format encodes it afterwards.

    GGUF stores vectors (norms) as float32 in any case, as llama.cpp's converter does.
    """
    if dtype is None or dtype in MIXES or (output_format == "gguf" and len(shape) == 1):
        return own
    return dtype


def check_output(output: OutputSpec) -> None:
    """Refuses a model that the format cannot hold, with the numbers.

    Raises:
        UnsupportedOption: The ranks or the dtype do not fit the model's sizes.
        UnsupportedFormat: The format cannot hold a part of the model.
        VocabularyMismatch: Embeddings and tokenizer differ in size, which Meta's layout does not allow.
    """
    FORMATS[output.format].check(output)


def output_bytes(output: OutputSpec) -> int:
    """Returns the bytes of all tensors as they are written."""
    return FORMATS[output.format].size_bytes(output)


def output_warnings(output: OutputSpec) -> list[str]:
    """Returns what a user should know about the output beforehand."""
    return FORMATS[output.format].warnings(output)


@dataclass(frozen=True, slots=True)
class _Format:
    check: Callable[[OutputSpec], None]
    size_bytes: Callable[[OutputSpec], int]
    warnings: Callable[[OutputSpec], list[str]]


# ---- Hugging Face -------------------------------------------------------------------------------------


def _check_huggingface(output: OutputSpec) -> None:
    """Accepts every model: the description of a model is in this layout's terms."""


def _plain_bytes(output: OutputSpec) -> int:
    return sum(_plain_size(output, name) for name in output.tensors)


def _plain_size(output: OutputSpec, name: str) -> int:
    dtype, shape = output.tensors[name]
    return size_of(dtype, prod(shape))


# ---- Meta ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Split:
    """Split of one tensor over the ranks: rank i holds `bounds[i]` of dimension `dim`; None: each holds all of it."""

    name: str
    dim: int | None
    bounds: tuple[tuple[int, int], ...]
    rotary_heads: int

    def shape(self, whole: Shape, rank: int) -> Shape:
        """Returns the shape of one rank's part."""
        if self.dim is None:
            return whole
        start, end = self.bounds[rank]
        return (*whole[: self.dim], end - start, *whole[self.dim + 1 :])


def split_of(output: OutputSpec, name: str) -> Split:
    """Returns the split of a tensor over the ranks: equal parts, and the last one holds the remainder of the vocabulary.

    Source: facebookresearch/llama `model.py`; published 13B files hold 24976 and 24977 rows of Chinese-LLaMA's
    49953.
    """
    row = row_of(output.config, name)
    assert row.meta is not None
    dim = {Join.ROWS: 0, Join.COLUMNS: 1, Join.EMBEDDING: 0 if _is_llama3(output) else 1}.get(row.join)
    size = 0 if dim is None else output.tensors[name][1][dim]
    edges = [size // output.ranks * rank for rank in range(output.ranks)] + [size]
    return Split(
        row.meta.format(kind_of(name)[1]), dim, tuple(pairwise(edges)), rotary_heads(row, output.config)
    )


def _is_llama3(output: OutputSpec) -> bool:
    """Returns True for Llama 3, which splits its embeddings by rows (VocabParallelEmbedding); earlier ones by columns."""
    by_tokenizer = output.vocabulary is not None and output.vocabulary.kind == "tiktoken"
    return by_tokenizer or output.config.bos_token_id == LLAMA3_BOS


def _check_meta(output: OutputSpec) -> None:
    config = output.config
    if config.family is None or not config.family.writes_meta:
        raise UnsupportedFormat(
            f"The model is of type {config.model_type!r}; Meta's layout holds LLaMA models only.",
            "Keep it in Hugging Face's layout.",
        )
    for name in output.tensors:
        if row_of(config, name).meta is None:
            raise UnsupportedFormat(
                f"The model has {name!r}; Meta's layout has no biases.", "Keep it in Hugging Face's layout."
            )
    if config.num_attention_heads * config.head_dim != config.hidden_size:
        raise UnsupportedFormat(
            f"The model has {config.num_attention_heads} heads of {config.head_dim}; in Meta's layout they make up the "
            f"hidden size, which is {config.hidden_size}.",
            "Keep it in Hugging Face's layout.",
        )
    _check_ranks(output)
    vocabulary = output.vocabulary
    if (
        vocabulary is not None
        and vocabulary.file == "tokenizer.model"
        and vocabulary.size != config.vocab_size
    ):
        raise VocabularyMismatch(
            f"The embeddings have {config.vocab_size} rows and the tokenizer {vocabulary.size} tokens; Meta's layout "
            "takes the vocabulary from the tokenizer: the two must be equal.",
            "Keep it in Hugging Face's layout, which allows rows of padding.",
        )
    config_to_params(config)


def _check_ranks(output: OutputSpec) -> None:
    config, ranks = output.config, output.ranks
    sizes = {
        "attention heads": config.num_attention_heads, "key-value heads": config.num_key_value_heads,
        "feed-forward rows": config.intermediate_size, "hidden dimensions": config.hidden_size,
    }  # fmt: skip
    for what, size in sizes.items():
        if size % ranks:
            raise UnsupportedOption(
                f"The model has {size} {what}, which {ranks} ranks do not divide ({size % ranks} are left).",
                f"Choose ranks that divide {', '.join(str(size) for size in sizes.values())}.",
            )
    if config.vocab_size < ranks:
        raise UnsupportedOption(
            f"The vocabulary has {config.vocab_size} rows, too few for {ranks} ranks.", "Choose fewer ranks."
        )


def _meta_bytes(output: OutputSpec) -> int:
    return sum(_meta_size(output, name) for name in output.tensors)


def _meta_size(output: OutputSpec, name: str) -> int:
    copies = output.ranks if split_of(output, name).dim is None else 1
    return copies * _plain_size(output, name)


def _meta_warnings(output: OutputSpec) -> list[str]:
    dtype = output.tensors["model.embed_tokens.weight"][0]
    tokenizer = "tiktoken" if _is_llama3(output) else "sentencepiece"
    return params_warnings(output.config, dtype=dtype, tokenizer=tokenizer)


# ---- all ----------------------------------------------------------------------------------------------


def _no_warnings(output: OutputSpec) -> list[str]:
    return []


FORMATS: Mapping[OutputFormat, _Format] = {
    "huggingface": _Format(_check_huggingface, _plain_bytes, _no_warnings),
    "meta": _Format(_check_meta, _meta_bytes, _meta_warnings),
    "gguf": _Format(check_gguf, gguf_bytes, gguf_warnings),
}
"""One row per format: its check, the bytes of all tensors, and its warnings."""
