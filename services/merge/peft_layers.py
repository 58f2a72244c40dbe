"""Merge by PEFT's own layers, one module at a time: for tuners that have no fast path, in the memory of one module.

The module is placed at its own path inside an otherwise empty model, PEFT puts its layer around it, loads the
module's tensors and merges: the same code runs as in a merge of the whole model.
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
    """Returns the weight with a tuner's change, in the weight's dtype. Peak memory: a few copies of it in float32.

    Args:
        weight: Shape (out, in) for a projection, (vocabulary, hidden) for an embedding.

    Raises:
        AdapterMismatch: The tuner's tensors do not fit the module.
        UnknownAdapterKey: PEFT does not know a tensor, or one that it needs is missing.
        NonFiniteTensor: One of them holds NaN or infinity.
    """
    model = layer_model(reader, adapter, layer, weight)
    merged = model.merge_and_unload().get_submodule(layer.module).weight
    return merged.detach().to(weight.dtype)  # type: ignore[no-any-return]


def layer_model(reader: TensorReader, adapter: str, layer: TunerLayer, weight: torch.Tensor) -> PeftModel:
    """Returns a model of this one module with PEFT's layer around it and the tuner's tensors loaded.

    Raises:
        AdapterMismatch: The tuner's tensors do not fit the module.
        UnknownAdapterKey: PEFT does not know a tensor, or one that it needs is missing.
        NonFiniteTensor: One of them holds NaN or infinity.
    """
    tensors = {}
    for key, header in {**layer.tensors, **layer.shared}.items():
        part = _part(layer, key, reader.view(header), weight.shape)
        tensors[key] = part.clone(memory_format=torch.contiguous_format)
        check_finite(f"{adapter}: {key}", tensors[key])
    with warnings.catch_warnings():
        # PEFT warns trainers about changed defaults; the config here is the adapter's own
        warnings.simplefilter("ignore")
        model = PeftModel(_single_module(layer, weight), _config(layer))
        try:
            result = set_peft_model_state_dict(model, tensors)
        except RuntimeError as error:
            raise AdapterMismatch(
                f"Adapter {adapter}: its tensors for {layer.module!r} do not fit a weight of shape "
                f"{list(weight.shape)}: {str(error).splitlines()[-1].strip()}.",
                "The adapter was trained on another base: use that one.",
            ) from error
    _check_loaded(adapter, layer, result, model)
    return model


def _part(layer: TunerLayer, key: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns the part of a tensor that a module of this shape uses: all of its own, of a shared one PEFT's slice.

    Source: peft/tuners/vera/layer.py, get_delta_weight; peft/tuners/randlora/layer.py, get_scaled_bases. RandLoRA's files
    hold a copy of the shared ones under each module's name as well.
    """
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
            f"Adapter {adapter}: PEFT finds {odd[0]!r} missing or unknown in {layer.module!r}.",
            "Re-save the adapter with the PEFT version that trained it.",
        )


def _single_module(layer: TunerLayer, weight: torch.Tensor) -> nn.Module:
    root = nn.Module()
    *parents, last = layer.module.split(".")
    parent = root
    for name in parents:
        child = nn.Module()
        parent.add_module(name, child)
        parent = child
    rows, columns = weight.shape
    module: nn.Module
    if last == "embed_tokens" or any(".lora_embedding_" in key for key in layer.tensors):
        module = nn.Embedding(rows, columns, device="meta")
    else:
        module = nn.Linear(columns, rows, bias=False, device="meta")
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    parent.add_module(last, module)
    return root


def _config(layer: TunerLayer) -> Any:
    """Returns the adapter's own configuration with this module as its only target, without keys that PEFT does not know."""
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[layer.config["peft_type"]]
    known = set(inspect.signature(config_class.__init__).parameters)
    values: dict[str, Any] = {key: value for key, value in layer.config.items() if key in known}
    values |= _targets(layer.config, layer.module)
    return config_class(**{key: value for key, value in values.items() if key in known})


def _targets(config: Mapping[str, Any], module: str) -> dict[str, Any]:
    feedforward = config.get("feedforward_modules") or []
    names = [feedforward] if isinstance(feedforward, str) else list(feedforward)
    inside = [module] if any(f".{module}".endswith(f".{name}") for name in names) else []
    return {
        "target_modules": [module], "feedforward_modules": inside, "modules_to_save": None, "task_type": None,
        "inference_mode": False, "layers_to_transform": None, "layers_pattern": None, "exclude_modules": None,
        "trainable_token_indices": None, "auto_mapping": None, "revision": None, "base_model_name_or_path": None,
    }  # fmt: skip
