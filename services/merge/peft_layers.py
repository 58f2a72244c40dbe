"""PEFT's own layers, one module at a time: the tuners that have no fast path, in the memory of one module.

The module stands alone at its own path inside an otherwise empty model, PEFT puts its layer around it, loads the
module's tensors and merges: the code that runs is the one that a merge of the whole model would run.
"""

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from services.adapters.tuners import TunerLayer
from services.checkpoints.tensor_reader import TensorReader, check_finite
from services.errors import AdapterMismatch, UnknownAdapterKey

NOT_SAVED = ("base_layer.", "randlora_A", "randlora_B", "vera_A", "vera_B", "ranknum")
"""Parameters inside a layer that its file does not hold: the base's own, views of shared ones, and a count of ranks."""


def merge_layer(reader: TensorReader, adapter: str, layer: TunerLayer, weight: torch.Tensor) -> torch.Tensor:
    """The weight with a tuner's change, in the weight's dtype; peak memory: a few copies of it in float32.

    Args:
        weight: shape (out, in) of a projection, (vocabulary, hidden) of an embedding.

    Raises:
        AdapterMismatch: the tuner's tensors do not fit the module.
        UnknownAdapterKey: PEFT does not know a tensor, or one that it needs is missing.
        NonFiniteTensor: one of them holds NaN or infinity.
    """
    model = layer_model(reader, adapter, layer, weight)
    merged = model.merge_and_unload().get_submodule(layer.module).weight
    return merged.detach().to(weight.dtype)  # type: ignore[no-any-return]


def layer_model(reader: TensorReader, adapter: str, layer: TunerLayer, weight: torch.Tensor) -> PeftModel:
    """A model of this one module with PEFT's layer around it, the tuner's tensors loaded."""
    tensors = {}
    for key, header in {**layer.tensors, **layer.shared}.items():
        part = _part(layer, key, reader.view(header), weight.shape)
        tensors[key] = part.clone(memory_format=torch.contiguous_format)
        check_finite(f"{adapter}: {key}", tensors[key])
    with warnings.catch_warnings():
        # PEFT tells trainers about defaults that were changed; the config here is the adapter's own
        warnings.simplefilter("ignore")
        model = PeftModel(_alone(layer.module, weight), _config(layer))
        try:
            result = set_peft_model_state_dict(model, tensors)
        except RuntimeError as error:
            raise AdapterMismatch(
                f"adapter {adapter}: its tensors for {layer.module!r} do not fit a weight of shape "
                f"{list(weight.shape)}: {str(error).splitlines()[-1].strip()}",
                "The adapter was trained on another base: use that one.",
            ) from error
    _check_loaded(adapter, layer, result, model)
    return model


def _part(layer: TunerLayer, key: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """What a module of this shape uses of a tensor: all of its own, of a shared one as much as PEFT's layer slices off
    (peft/tuners/vera/layer.py, get_delta_weight; peft/tuners/randlora/layer.py, get_scaled_bases).

    RandLoRA's files hold a copy of the shared ones under each module's name as well."""
    rows, columns = shape
    smaller, larger = sorted(shape)
    match key.rsplit(".", 1)[-1]:
        case "vera_A":
            return tensor[:, :columns]
        case "vera_B":
            return tensor[:rows]
        case "randlora_A":
            return tensor[..., :smaller]
        case "randlora_B":
            return tensor[:larger, : -(-smaller // int(layer.config["r"]))]
    return tensor


def _check_loaded(adapter: str, layer: TunerLayer, result: Any, model: PeftModel) -> None:
    tuner_keys = [
        key
        for key in result.missing_keys
        if f"{layer.module}." in key and not any(f".{part}" in key for part in NOT_SAVED)
    ]
    odd = [*result.unexpected_keys, *tuner_keys]
    if odd:
        raise UnknownAdapterKey(
            f"adapter {adapter}: PEFT finds {odd[0]!r} missing or unknown in {layer.module!r}",
            "Re-save the adapter with the PEFT version that trained it.",
        )


def _alone(path: str, weight: torch.Tensor) -> nn.Module:
    root = nn.Module()
    *parents, last = path.split(".")
    place = root
    for name in parents:
        child = nn.Module()
        place.add_module(name, child)
        place = child
    rows, columns = weight.shape
    module: nn.Module
    if last == "embed_tokens":
        module = nn.Embedding(rows, columns, device="meta")
    else:
        module = nn.Linear(columns, rows, bias=False, device="meta")
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    place.add_module(last, module)
    return root


def _config(layer: TunerLayer) -> Any:
    """The adapter's own configuration, aimed at this module alone; keys that PEFT does not know have no value here."""
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[layer.config["peft_type"]]
    known = set(inspect.signature(config_class.__init__).parameters)
    values: dict[str, Any] = {key: value for key, value in layer.config.items() if key in known}
    values |= _aimed(layer.config, layer.module)
    return config_class(**{key: value for key, value in values.items() if key in known})


def _aimed(config: Mapping[str, Any], module: str) -> dict[str, Any]:
    feedforward = config.get("feedforward_modules") or []
    names = [feedforward] if isinstance(feedforward, str) else list(feedforward)
    inside = [module] if any(f".{module}".endswith(f".{name}") for name in names) else []
    return {
        "target_modules": [module], "feedforward_modules": inside, "modules_to_save": None, "task_type": None,
        "inference_mode": False, "layers_to_transform": None, "layers_pattern": None, "exclude_modules": None,
        "trainable_token_indices": None, "auto_mapping": None, "revision": None, "base_model_name_or_path": None,
    }  # fmt: skip
