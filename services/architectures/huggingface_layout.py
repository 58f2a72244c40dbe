"""Hugging Face model folders: `config.json` and weights, single or sharded."""

from dataclasses import replace
from pathlib import Path

from services.architectures.checkpoint import Checkpoint, TensorSource
from services.architectures.checkpoint_checks import (
    check_complete,
    check_layers,
    check_vocabulary,
    only_floats,
)
from services.architectures.config import ModelConfig, read_config
from services.architectures.dense_layout import dense_sources
from services.architectures.expected_tensors import Expected, expected_tensors
from services.architectures.family import Family, ModelClass
from services.architectures.four_bit import FourBit, unpacked
from services.architectures.json_vocabulary import read_folder_vocabulary
from services.architectures.quantized import check_quantization
from services.errors import ConfigMismatch, IncompleteCheckpoint, ShapeMismatch, UnknownTensor
from services.files.json_file import read_json
from services.files.tensors import TensorHeader
from services.files.weight_files import Tensors, read_weights


def read_huggingface(folder: Path, *, dequantized: bool = False) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise IncompleteCheckpoint(
            f"{folder.name} has neither consolidated.*.pth nor config.json.",
            "A base model is an original LLaMA checkpoint or a Hugging Face folder.",
        )
    is_four_bit = check_quantization(read_json(folder / "config.json"), folder, dequantized=dequantized)
    found, four_bit = unpacked(read_weights(folder)) if is_four_bit else (read_weights(folder), {})
    if not found:
        raise IncompleteCheckpoint(
            f"The weights of {folder.name} hold no tensors.",
            "Fetch the model again; all its files are needed.",
        )
    dtype = max(found.values(), key=lambda tensor: tensor.size_bytes).dtype
    config = read_config(folder / "config.json", dtype)
    dropped = _dropped(config, found)
    kept = only_floats({name: tensor for name, tensor in found.items() if name not in dropped})
    check_layers(config.num_hidden_layers, kept)
    if config.family is not None:
        sources = _family_sources(config, config.family, kept)
    else:
        sources = dense_sources(config, kept)
    sources = {name: _stored(source, four_bit.get(name)) for name, source in sources.items()}
    vocabulary = read_folder_vocabulary(folder)
    check_vocabulary(config, vocabulary, exact=False)
    files = tuple(dict.fromkeys(tensor.path for tensor in found.values()))
    return Checkpoint(folder, "huggingface", config, sources, dropped, 1, folder, vocabulary, files)


def _stored(source: TensorSource, four_bit: FourBit | None) -> TensorSource:
    if four_bit is None:
        return source
    return replace(source, parts=tuple(four_bit.stored.values()), four_bit=four_bit)


def _dropped(config: ModelConfig, found: Tensors) -> tuple[str, ...]:
    """Returns the names of tensors that the class computes, and of a tied head whose bytes are those of the embedding."""
    model_class = config.model_class
    return tuple(n for n in found if model_class.is_dropped(n)) + _shared_head(config, model_class, found)


def _shared_head(config: ModelConfig, model_class: ModelClass, found: Tensors) -> tuple[str, ...]:
    """Returns the name of a tied head that is stored as the embedding's own bytes, as torch saves tied weights.

    Raises:
        ConfigMismatch: A tied head has bytes of its own.
    """
    names = {model_class.text_name(name): name for name in found}
    head, embeddings = names.get(model_class.head), names.get(model_class.embeddings)
    if not config.tie_word_embeddings or head is None:
        return ()
    if embeddings is not None and replace(found[head], name=embeddings) == found[embeddings]:
        return (head,)
    raise ConfigMismatch(
        f"config.json says tie_word_embeddings = true and the weights hold a {head} of their own.",
        f"Set tie_word_embeddings to false if the two differ, or leave {head} out of the files.",
    )


def _family_sources(config: ModelConfig, family: Family, kept: Tensors) -> dict[str, TensorSource]:
    """Returns the tensors of the text model in the table's order, then those of the towers."""
    names = _text_names(family, kept)
    wanted = {tensor.huggingface: tensor for tensor in expected_tensors(config)}
    check_complete(set(wanted), set(names), {text: kept[name] for text, name in names.items()})
    sources = {names[text]: _whole(tensor, kept[names[text]], config) for text, tensor in wanted.items()}
    towers = (tensor for name, tensor in kept.items() if name not in sources)
    return sources | {t.name: TensorSource(t.name, t.dtype, t.shape, (t,)) for t in towers}


def _text_names(family: Family, kept: Tensors) -> dict[str, str]:
    """Returns the names in the files by those of the table.

    Raises:
        UnknownTensor: A tensor has no row, or two have the same.
    """
    names: dict[str, str] = {}
    for name, tensor in kept.items():
        text = family.text_name(name)
        if text is None:
            continue
        if family.row_of(name) is None or text in names:
            again = (
                f"the same tensor as {names[text]!r}"
                if text in names
                else f"not a tensor of a {family.title} model"
            )
            raise UnknownTensor(
                f"{tensor.path.name} holds {name!r}, which is {again}.",
                f"config.json says model_type = {family.model_types[0]!r}; nothing was dropped or written.",
            )
        names[text] = name
    return names


def _whole(expected: Expected, part: TensorHeader, config: ModelConfig) -> TensorSource:
    if part.shape != expected.shape:
        raise ShapeMismatch(
            f"{part.path.name}: {part.name!r} has shape {list(part.shape)}; config.json needs {list(expected.shape)}"
            f" (vocab_size {config.vocab_size}, hidden_size {config.hidden_size}).",
            "Use the config.json that belongs to these weights.",
        )
    return TensorSource(part.name, part.dtype, part.shape, (part,))
