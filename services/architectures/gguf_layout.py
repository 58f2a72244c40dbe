"""GGUF checkpoints: one file or several, read under Hugging Face's names.

Every tensor of the file is one of the configuration's, or the vector of frequency factors that `rope_scaling` stands for.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

from services.architectures.checkpoint import Checkpoint, TensorSource
from services.architectures.config import ModelConfig, config_of
from services.architectures.expected_tensors import Expected, expected_tensors
from services.architectures.gguf_configs import WINDOWS
from services.architectures.gguf_families import GGUF_FAMILIES, GgufFamily
from services.architectures.gguf_values import ArchitectureValues
from services.architectures.gguf_vocabulary import ARRAYS, GgufVocabulary, read_gguf_vocabulary
from services.architectures.key_map import rotary_heads
from services.errors import (
    ConfigMismatch,
    IncompleteCheckpoint,
    ShapeMismatch,
    UnknownTensor,
    UnsupportedFormat,
    VocabularyMismatch,
)
from services.files.gguf_files import GgufModel, read_gguf_model
from services.files.json_file import Json

FLOATS = ("F32", "F16", "BF16")
"""Encodings that are dtypes."""

DECODED = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS",
    "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
)  # fmt: skip
"""Block encodings that the `gguf` package decodes."""

DECODED_DTYPE = "F16"
"""Dtype in which decoded values are written unless another one is requested."""


WINDOWED_LAYERS = f"gemma3.{WINDOWS}"
"""Key whose array of flags is kept: the layers with a window, where they are not every sixth."""


def is_gguf_folder(folder: Path) -> bool:
    """Returns True if a folder holds GGUF files and no `config.json`."""
    return not (folder / "config.json").is_file() and any(folder.glob("*.gguf"))


def read_gguf(folder: Path) -> Checkpoint:
    """Returns the description of a GGUF model from its headers; of its tensors only the frequency factors are read."""
    model = read_gguf_model(folder, (*ARRAYS, WINDOWED_LAYERS))
    family = _family(model)
    vocabulary = read_gguf_vocabulary(model)
    config = _config(model, family, vocabulary)
    wanted = {family.gguf_name(expected.huggingface): expected for expected in expected_tensors(config)}
    ignored = {*family.ignored} & set(model.tensors)
    _check_names(model, set(wanted), set(model.tensors) - ignored)
    sources = {
        expected.huggingface: _source(model, name, expected, config) for name, expected in wanted.items()
    }
    main = _main_dtype(sources.values())
    return Checkpoint(
        folder, "gguf", config, {name: _finished(source, family, main) for name, source in sources.items()},
        tuple(sorted(ignored)), 1, folder, vocabulary.vocabulary, tuple(part.path for part in model.parts),
    )  # fmt: skip


def _family(model: GgufModel) -> GgufFamily:
    found = GGUF_FAMILIES.get(model.architecture)
    if found is None:
        raise UnsupportedFormat(
            f"{model.name} is of the architecture {model.architecture!r}; taken are {', '.join(GGUF_FAMILIES)}.",
            "Use the model's Hugging Face files, or a model of one of these families.",
        )
    return found


def _config(model: GgufModel, family: GgufFamily, vocabulary: GgufVocabulary) -> ModelConfig:
    values = ArchitectureValues(model)
    raw = family.config(values, model) | _token_ids(vocabulary)
    values.check_all_read()
    _check_sizes(model, raw, vocabulary)
    return config_of(raw, DECODED_DTYPE)


def _token_ids(vocabulary: GgufVocabulary) -> Json:
    ends = list(vocabulary.ends)
    return {
        "bos_token_id": vocabulary.ids.get("bos_token"), "pad_token_id": vocabulary.ids.get("pad_token"),
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
    }  # fmt: skip


def _check_sizes(model: GgufModel, raw: Json, vocabulary: GgufVocabulary) -> None:
    """Refuses sizes by which no tensor could be named or cut into heads, and a tokenizer with more tokens than embeddings."""
    if raw["num_hidden_layers"] > len(model.tensors):
        raise IncompleteCheckpoint(
            f"{model.name} announces {raw['num_hidden_layers']} layers and holds {len(model.tensors)} tensors.",
            "It is damaged or split: fetch all files of the model.",
        )
    if raw["head_dim"] % 2 or raw["num_attention_heads"] % raw["num_key_value_heads"]:
        raise ConfigMismatch(
            f"{model.name} announces {raw['num_attention_heads']} heads of {raw['head_dim']} and "
            f"{raw['num_key_value_heads']} key-value heads; heads have an even size and share key-value heads equally.",
            "The file is damaged or was made by another program: fetch it again.",
        )
    if len(vocabulary.tokens) > raw["vocab_size"]:
        raise VocabularyMismatch(
            f"{model.name} has {len(vocabulary.tokens)} tokens and {raw['vocab_size']} rows of embeddings.",
            "The file is damaged or was made by another program: fetch it again.",
        )


def _check_names(model: GgufModel, wanted: set[str], found: set[str]) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing:
        raise IncompleteCheckpoint(
            f"{len(missing)} of {len(wanted)} tensors of {model.name} are missing; the first is {missing[0]!r}.",
            "Fetch the model again; all its files are needed.",
        )
    if extra:
        raise UnknownTensor(
            f"{model.name} holds {extra[0]!r}, which a {model.architecture} model of its metadata does not have.",
            "Nothing was dropped or written: use the model's Hugging Face files.",
        )


def _source(model: GgufModel, name: str, expected: Expected, config: ModelConfig) -> TensorSource:
    """Returns a tensor with its encoding, after its shape is known to be the expected one."""
    tensor = model.tensors[name]
    if tensor.encoding not in (*FLOATS, *DECODED):
        raise UnsupportedFormat(
            f"{model.name}: tensor {name!r} is of type {tensor.encoding}, which cannot be decoded to weights.",
            "Use a GGUF file of another type, or the model's Hugging Face files.",
        )
    if tensor.shape != expected.shape:
        raise ShapeMismatch(
            f"{model.name}: {name!r} has shape {list(tensor.shape)}; its metadata needs {list(expected.shape)}.",
            "The file is damaged or was made by another program: fetch it again.",
        )
    dtype = tensor.encoding if tensor.encoding in FLOATS else DECODED_DTYPE
    heads = rotary_heads(expected.row, config)
    return TensorSource(
        expected.huggingface,
        dtype,
        tensor.shape,
        (model.raw(name),),
        rotary_heads=heads,
        encoding=tensor.encoding,
    )


def _main_dtype(sources: Iterable[TensorSource]) -> str:
    """Returns the dtype of the most matrix elements."""
    elements = Counter[str]()
    for source in sources:
        elements[source.dtype] += prod(source.shape) if len(source.shape) > 1 else 0
    return elements.most_common(1)[0][0]


def _finished(source: TensorSource, family: GgufFamily, main: str) -> TensorSource:
    """Returns a tensor with its offset; a vector, which GGUF stores as float32 in any case, has the dtype of the matrices."""
    dtype = main if len(source.shape) == 1 else source.dtype
    return replace(source, dtype=dtype, offset=family.offset(source.name))
