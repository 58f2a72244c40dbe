"""Tensors of a model type that has no family, checked as far as headers and configuration say.

All layers of a model have the same tensors; the experts of a mixture follow from its configuration. The worker also compares the names with transformers' class before it writes
anything.
"""

import re

from services.architectures.checkpoint import TensorSource
from services.architectures.checkpoint_checks import check_complete
from services.architectures.config import ModelConfig
from services.architectures.key_map import Shape
from services.architectures.mixtures import MixtureClass
from services.errors import IncompleteCheckpoint, ShapeMismatch
from services.files.weight_files import Tensors

EXPERTS = ".mlp.experts."
_LAYER = re.compile(r"(?<=\.)[0-9]{1,6}(?=\.)")


def dense_sources(config: ModelConfig, kept: Tensors) -> dict[str, TensorSource]:
    """Returns the tensors of a checkpoint under their own names.

    Raises:
        IncompleteCheckpoint: A layer, one of its tensors, the embedding or the head is missing.
        UnknownTensor: A layer has a tensor that the first one does not have, or the head is there though it is tied.
        ShapeMismatch: The embedding or the head does not have the configuration's sizes, or layers differ in shapes.
    """
    model_class = config.model_class
    names = {model_class.module_name(name): name for name in kept}
    by_name = {module: kept[name] for module, name in names.items()}
    ends = {model_class.embeddings} | (set() if config.tie_word_embeddings else {model_class.head})
    outside = {module for module in names if _LAYER.search(module) is None and module != model_class.head}
    first = {module: kept[name].shape for module, name in names.items() if _layer(module) == "0"}
    if not first:
        raise IncompleteCheckpoint(
            "The files hold no tensor of layer 0.", "Fetch the checkpoint again; all its files are needed."
        )
    layers = {
        _LAYER.sub(str(layer), module, count=1): shape
        for layer in range(config.num_hidden_layers) for module, shape in first.items()
    }  # fmt: skip
    experts = _experts(config)
    layers = {name: shape for name, shape in layers.items() if EXPERTS not in name} | experts
    check_complete(ends | outside | set(layers), set(names), by_name)
    tokens: Shape = (config.vocab_size, config.hidden_size)
    for module, shape in (dict.fromkeys(sorted(ends), tokens) | layers).items():
        found = by_name[module].shape
        if found != shape:
            raise ShapeMismatch(
                f"{by_name[module].path.name}: {names[module]!r} has shape {list(found)}; needed is {list(shape)} "
                f"(vocab_size {config.vocab_size}, hidden_size {config.hidden_size}, or the shape in layer 0).",
                "Use the config.json that belongs to these weights.",
            )
    return {name: TensorSource(name, t.dtype, t.shape, (t,)) for name, t in kept.items()}


def _experts(config: ModelConfig) -> dict[str, Shape]:
    """Returns the shapes of all experts' tensors, empty for a dense model."""
    model_class = config.model_class
    if not isinstance(model_class, MixtureClass):
        return {}
    shapes = model_class.expert_shapes(config.text_source)
    layers = range(config.num_hidden_layers)
    return {f"model.layers.{n}{EXPERTS}{name}": shape for n in layers for name, shape in shapes.items()}


def _layer(module: str) -> str | None:
    match = _LAYER.search(module)
    return match[0] if match else None
