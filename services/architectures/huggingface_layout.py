"""Hugging Face model folders: `config.json` and weights, single or sharded."""

from pathlib import Path

from services.architectures.checkpoint import Checkpoint, TensorSource
from services.architectures.checkpoint_checks import (
    check_complete,
    check_layers,
    check_vocabulary,
    find_vocabulary,
    only_floats,
)
from services.architectures.config import ModelConfig, read_config
from services.architectures.key_map import BY_HUGGINGFACE, Expected, Join, expected_tensors, kind_of
from services.errors import ConfigMismatch, IncompleteCheckpoint, ShapeMismatch, UnknownTensor
from services.files.tensors import TensorHeader
from services.files.weight_files import read_weights


def read_huggingface(folder: Path) -> Checkpoint:
    if not (folder / "config.json").is_file():
        raise IncompleteCheckpoint(
            f"{folder.name} has neither consolidated.*.pth nor config.json.",
            "A base model is an original LLaMA checkpoint or a Hugging Face folder.",
        )
    found = only_floats(read_weights(folder))
    if not found:
        raise IncompleteCheckpoint(
            f"The weights of {folder.name} hold no tensors.",
            "Fetch the model again; all its files are needed.",
        )
    dtype = max(found.values(), key=lambda tensor: tensor.size_bytes).dtype
    config = read_config(folder / "config.json", dtype)
    dropped = tuple(
        n for n in found if (row := BY_HUGGINGFACE.get(kind_of(n)[0])) and row.join is Join.DROPPED
    )
    kept = {name: tensor for name, tensor in found.items() if name not in dropped}
    for name, tensor in kept.items():
        if kind_of(name)[0] not in BY_HUGGINGFACE:
            raise UnknownTensor(
                f"{tensor.path.name} holds {name!r}, which is not a tensor of a LLaMA model.",
                "Only LLaMA-family models can be read; nothing was dropped or written.",
            )
    check_layers(config.num_hidden_layers, kept)
    wanted = expected_tensors(config)
    if config.tie_word_embeddings and "lm_head.weight" in kept:
        raise ConfigMismatch(
            "config.json says tie_word_embeddings = true and the weights hold a lm_head.weight of their own.",
            "Set tie_word_embeddings to false if the two differ, or leave lm_head.weight out of the files.",
        )
    check_complete({tensor.huggingface for tensor in wanted}, set(kept), kept)
    sources = {e.huggingface: _whole(e, kept[e.huggingface], config) for e in wanted}
    vocabulary = find_vocabulary(folder)
    check_vocabulary(config, vocabulary, exact=False)
    files = tuple(dict.fromkeys(tensor.path for tensor in found.values()))
    return Checkpoint(folder, "huggingface", config, sources, dropped, 1, folder, vocabulary, files)


def _whole(expected: Expected, part: TensorHeader, config: ModelConfig) -> TensorSource:
    if part.shape != expected.shape:
        raise ShapeMismatch(
            f"{part.path.name}: {part.name!r} has shape {list(part.shape)}; config.json needs {list(expected.shape)}"
            f" (vocab_size {config.vocab_size}, hidden_size {config.hidden_size}).",
            "Use the config.json that belongs to these weights.",
        )
    return TensorSource(expected.huggingface, part.dtype, part.shape, (part,))
