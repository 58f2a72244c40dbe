"""Extraction of an adapter from a fine-tuned model and its base, from headers alone: do they belong together, and what can differ?

A linear weight becomes a LoRA pair. Embeddings, norms and biases have no such form: they go along whole, as PEFT's
`modules_to_save`, and so does a head whose rows have grown.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.architectures.checkpoint import Checkpoint, TensorSource
from services.architectures.mixtures import MixtureClass
from services.errors import InvalidRequest, UnsupportedFormat, VocabularyMismatch

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "rms_norm_eps", "rope_theta", "attention_bias", "mlp_bias",
)  # fmt: skip
"""Values of the configuration that an adapter cannot change."""

SEPARATE_KEYS = frozenset({
    *SIZES, "rope_scaling", "architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "rope_parameters", "vocab_size",
    "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "max_position_embeddings", "tie_word_embeddings",
    "attention_dropout", "hidden_dropout", "initializer_range", "pretraining_tp", "cache_implementation", "unsloth_fixed",
    "unsloth_version",
})  # fmt: skip
"""Keys of `config.json` that are compared under another name, or that the values of a forward pass do not depend on."""

NOT_CARRIED = ("max_position_embeddings", "bos_token_id", "eos_token_id")
"""Values of the configuration that stay the base's when the adapter is merged; a difference is a warning."""


@dataclass(frozen=True, slots=True)
class TensorPair:
    """A tensor of the base and the fine-tuned model's.

    Attributes:
        module: Path of its module in transformers' class.
        leaf: `weight` or `bias`.
        base: The base's tensor; of a tied head the embedding.
        model: The fine-tuned model's.
        low_rank: It is a linear weight of the same shape in both.
        required: It goes along even if it is equal.
        embedding: It is the input embedding.
        transposed: Its module is a Conv1D, which holds the weight transposed; the LoRA product is that of the transpose.
    """

    module: str
    leaf: str
    base: TensorSource
    model: TensorSource
    low_rank: bool = False
    required: bool = False
    embedding: bool = False
    transposed: bool = False

    @property
    def name(self) -> str:
        """Name of the tensor in transformers' class."""
        return f"{self.module}.{self.leaf}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a linear weight, (out, in)."""
        rows, columns = self.model.shape
        return (columns, rows) if self.transposed else (rows, columns)

    def factor_bytes(self, rank: int) -> int:
        """Returns the bytes of both factors in float32."""
        return 4 * rank * sum(self.shape)


@dataclass(frozen=True, slots=True)
class Extraction:
    """Tensors of two models that belong together, in the order of the base.

    `tokenizer_folder` has the files of the grown vocabulary, None if it is the base's. `tied_head` is the module of the head that
    both models tie to the embedding, None if one of them has a head of its own.
    """

    tensors: tuple[TensorPair, ...]
    vocabulary_rows: int
    tokenizer_folder: Path | None
    tied_head: str | None
    warnings: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes that are read of both models."""
        return sum(pair.base.size_bytes + pair.model.size_bytes for pair in self.tensors)

    def output_bytes(self, rank: int) -> int:
        """Returns the bytes of the adapter if every tensor differs."""
        copy = sum(pair.model.size_bytes for pair in self.tensors if pair.embedding and self.tied_head)
        return copy + sum(
            pair.factor_bytes(rank) if pair.low_rank else pair.model.size_bytes for pair in self.tensors
        )


def plan_extraction(base: Checkpoint, model: Checkpoint, rank: int) -> Extraction:
    """Returns the tensors whose differences an adapter can hold.

    Raises:
        InvalidRequest: The models are of different families, sizes or configurations, or no weight can have this rank.
        VocabularyMismatch: The fine-tuned model's vocabulary does not continue the base's.
        UnsupportedFormat: One of them is a mixture of experts, whose packed tensors are not linear modules.
    """
    _refuse_mixtures(base, model)
    _check_configurations(base, model)
    rows = _check_vocabularies(base, model)
    pairs = tuple(_pairs(base, model))
    largest = max((min(pair.shape) for pair in pairs if pair.low_rank), default=0)
    if rank > largest:
        raise InvalidRequest(
            f"The rank {rank} is larger than {largest}, the largest that a weight of {model.folder.name} can have.",
            f"Choose a rank of at most {largest}.",
        )
    return Extraction(
        pairs, rows, _grown_tokenizer(base, model, rows), _tied_head(base, model),
        tuple(_not_carried(base, model)),
    )  # fmt: skip


def _refuse_mixtures(*models: Checkpoint) -> None:
    for model in models:
        if isinstance(model.config.model_class, MixtureClass):
            raise UnsupportedFormat(
                f"{model.folder.name} is a mixture of experts ({model.config.model_type}); adapters are extracted from dense models.",
                "Choose a dense model and its base.",
            )


# ---- configurations -----------------------------------------------------------------------------------


def _check_configurations(base: Checkpoint, model: Checkpoint) -> None:
    if base.config.model_type != model.config.model_type:
        raise InvalidRequest(
            f"{base.folder.name} is of model_type {base.config.model_type!r} and {model.folder.name} of "
            f"{model.config.model_type!r}.",
            "Name the base that the model was trained from.",
        )
    for key, before, after in _differences(base, model):
        raise InvalidRequest(
            f"{key} is {before!r} in {base.folder.name} and {after!r} in {model.folder.name}: an adapter cannot change it.",
            "Name the base that the model was trained from.",
        )


def _differences(base: Checkpoint, model: Checkpoint) -> Iterator[tuple[str, Any, Any]]:
    for key in SIZES:
        before, after = getattr(base.config, key), getattr(model.config, key)
        if before != after:
            yield key, before, after
    scalings = _rope_scaling(base), _rope_scaling(model)
    if scalings[0] != scalings[1]:
        yield "rope_scaling", *scalings
    sources = base.config.text_source, model.config.text_source
    for key in sorted((sources[0].keys() & sources[1].keys()) - SEPARATE_KEYS):
        before, after = (source[key] for source in sources)
        if before != after and None not in (before, after):
            yield key, before, after


def _rope_scaling(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the rotary scaling under its present keys, empty without one."""
    scaling = checkpoint.config.rope_scaling or {}
    rest = {key: value for key, value in scaling.items() if key not in ("type", "rope_theta")}
    return {**rest, "rope_type": checkpoint.config.rope_type} if rest else {}


def _not_carried(base: Checkpoint, model: Checkpoint) -> Iterator[str]:
    """Yields a warning for each value of the configuration that an adapter does not change."""
    for key in NOT_CARRIED:
        before, after = getattr(base.config, key), getattr(model.config, key)
        if before != after:
            yield (
                f"{key} is {before} in {base.folder.name} and {after} in {model.folder.name}: an adapter does not carry it, "
                "so a merge keeps the base's"
            )


# ---- vocabularies -------------------------------------------------------------------------------------


def _check_vocabularies(base: Checkpoint, model: Checkpoint) -> int:
    """Returns the rows of the fine-tuned model's embeddings, which must begin with the base's tokens."""
    before, after = (found.tensors[found.embeddings].shape[0] for found in (base, model))
    if after < before:
        raise VocabularyMismatch(
            f"{model.folder.name} has embeddings of {after} rows and {base.folder.name} of {before}: an adapter cannot remove "
            "rows.",
            "Name the base that the model was trained from.",
        )
    if after > before and model.vocabulary is None:
        raise VocabularyMismatch(
            f"{model.folder.name} has {after - before} rows of embeddings more than {base.folder.name} and no tokenizer that "
            "says what they stand for.",
            "Add its tokenizer files.",
        )
    if base.vocabulary is not None and model.vocabulary is not None:
        _check_continues(base, model)
    return after


def _check_continues(base: Checkpoint, model: Checkpoint) -> None:
    before, after = base.vocabulary, model.vocabulary
    assert before is not None
    assert after is not None
    if not after.continues(before):
        raise VocabularyMismatch(
            f"The tokenizers of {base.folder.name} ({before.size} tokens) and {model.folder.name} ({after.size}) differ from "
            f"token {after.first_difference(before)} on.",
            "Name the base that the model was trained from.",
        )


def _grown_tokenizer(base: Checkpoint, model: Checkpoint, rows: int) -> Path | None:
    sizes = [found.vocabulary.size if found.vocabulary else 0 for found in (base, model)]
    grown = rows > base.tensors[base.embeddings].shape[0] or 0 < sizes[0] < sizes[1]
    return model.tokenizer_folder if grown else None


# ---- tensors ------------------------------------------------------------------------------------------


def _pairs(base: Checkpoint, model: Checkpoint) -> Iterator[TensorPair]:
    before, after = _by_name(base), _by_name(model)
    head = base.config.model_class.head
    for name in {**before, **after}:
        if name == head:
            continue
        if name not in before or name not in after:
            lacking = base if name not in before else model
            other = model if lacking is base else base
            raise InvalidRequest(
                f"{other.folder.name} has the tensor {name!r} and {lacking.folder.name} does not.",
                "Name the base that the model was trained from.",
            )
        yield _pair(base, name, before[name], after[name])
    if base.head is not None or model.head is not None:
        yield _head_pair(base, model, head)


def _by_name(checkpoint: Checkpoint) -> Mapping[str, TensorSource]:
    """Returns the tensors by their names in transformers' class."""
    rename = checkpoint.config.model_class.module_name
    return {rename(name): source for name, source in checkpoint.tensors.items()}


def _pair(base: Checkpoint, name: str, before: TensorSource, after: TensorSource) -> TensorPair:
    module, _, leaf = name.rpartition(".")
    per_token = before.name == base.embeddings
    if before.shape != after.shape and not (per_token and before.shape[1:] == after.shape[1:]):
        raise InvalidRequest(
            f"{name!r} has shape {list(before.shape)} in {base.folder.name} and {list(after.shape)} in the fine-tuned model.",
            "Name the base that the model was trained from.",
        )
    text = base.config.model_class.text_name(before.name) is not None
    low_rank = len(after.shape) == 2 and leaf == "weight" and text and not per_token
    transposed = low_rank and module.rpartition(".")[2] in base.config.model_class.conv1d
    return TensorPair(
        module, leaf, before, after, low_rank, embedding=per_token and leaf == "weight", transposed=transposed
    )


def _tied_head(base: Checkpoint, model: Checkpoint) -> str | None:
    tied = base.head is None and model.head is None
    return base.config.model_class.head.rpartition(".")[0] if tied else None


def _head_pair(base: Checkpoint, model: Checkpoint, name: str) -> TensorPair:
    """Returns the pair of the heads; a tied one is the embedding. On a tied base a head of its own always goes along."""
    before, after = (found.tensors[found.head or found.embeddings] for found in (base, model))
    module, _, leaf = name.rpartition(".")
    untied = base.head is None
    return TensorPair(module, leaf, before, after, before.shape == after.shape and not untied, untied)
