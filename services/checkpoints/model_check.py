"""Check of a checkpoint against transformers' own class, which is built without memory for its tensors."""

import torch
import transformers
from transformers import AutoConfig, PreTrainedModel

from services.architectures.checkpoint import Checkpoint
from services.architectures.config import config_to_json
from services.architectures.mixtures import MixtureClass
from services.errors import ConfigMismatch, IncompleteCheckpoint, ShapeMismatch, UnknownTensor


def check_class(checkpoint: Checkpoint) -> None:
    """Refuses a checkpoint whose tensors are not exactly those that transformers' class has for its configuration.

    A tied head is absent from the files. Tensors that `read_checkpoint` dropped are not looked at.

    Raises:
        ConfigMismatch: Transformers does not accept the configuration.
        UnknownTensor: The class has no tensor of a name.
        ShapeMismatch: The class has a tensor of another shape.
        IncompleteCheckpoint: The class has a tensor that the files lack.
    """
    model_class = checkpoint.config.model_class
    wanted = {name: tuple(tensor.shape) for name, tensor in empty_model(checkpoint).state_dict().items()}
    if isinstance(model_class, MixtureClass):
        wanted = model_class.expanded(wanted)
    for name, source in checkpoint.tensors.items():
        module = model_class.module_name(name)
        if module not in wanted:
            raise UnknownTensor(
                f"{name!r} is not a tensor of transformers' {model_class.architecture}.",
                "The checkpoint and its config.json do not belong together, or it needs another version of transformers.",
            )
        if wanted[module] != source.shape:
            raise ShapeMismatch(
                f"{name!r} has shape {list(source.shape)}; transformers' {model_class.architecture} needs {list(wanted[module])}.",
                "Use the config.json that belongs to these weights.",
            )
    found = {model_class.module_name(name) for name in checkpoint.tensors}
    tied = {model_class.head} if checkpoint.head is None else set()
    missing = sorted(wanted.keys() - found - tied)
    if missing:
        raise IncompleteCheckpoint(
            f"{len(missing)} of {len(wanted)} tensors of transformers' {model_class.architecture} are missing; the first is "
            f"{missing[0]!r}.",
            "Fetch the checkpoint again; all its files are needed.",
        )


def empty_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Returns a model of a checkpoint's class whose tensors have shapes and no values.

    Raises:
        ConfigMismatch: Transformers does not accept the configuration.
    """
    values = config_to_json(checkpoint.config, "float32")
    model_type = values.pop("model_type")
    architecture = getattr(transformers, checkpoint.config.model_class.architecture)
    try:
        config = AutoConfig.for_model(model_type, **values)
        with torch.device("meta"):
            return architecture(config)  # type: ignore[no-any-return]
    except Exception as error:  # configurations have checks of their own, which raise any class
        raise ConfigMismatch(
            f"transformers does not accept config.json for a {checkpoint.config.model_class.architecture}: {error}",
            "Use the config.json that belongs to these weights.",
        ) from error
