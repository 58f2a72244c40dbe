"""Configuration of an adapter: checks of PEFT's keys, rank and scale of each module.

Keys are those of PEFT's LoraConfig. A key that changes the result and is not supported is refused by name; an unknown key
passes only if it is null, false or empty (the configs of 2023 have some).
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from services.adapters.tuners import LAYER_TYPES
from services.errors import IncompleteAdapter, UnsupportedAdapter
from services.files.json_file import is_number

HARMLESS_KEYS = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
"""Keys about the training of an adapter, on which a merge does not depend. `fan_in_fan_out` is for Conv1D layers: PEFT
sets it to false on the linear layers that LLaMA has (peft/tuners/lora/model.py, dispatch_default)."""

KNOWN_KEYS = frozenset({
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "bias",
    "init_lora_weights", "use_dora", "trainable_token_indices", "target_parameters",
})  # fmt: skip
"""Keys that change the result and are honoured."""

EXACT_INITS = (True, False, "gaussian", "eva", "orthogonal", "lora_ga_none")
"""Initializations that do not change the base; PiSSA, CorDA, OLoRA and LoftQ change it."""


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Refuses options that would change the result and are not honoured.

    Raises:
        UnsupportedAdapter: The type of adapter or an option is not supported.
        IncompleteAdapter: A number is missing or not positive.
    """
    if config.get("peft_type") in (*LAYER_TYPES, "TRAINABLE_TOKENS"):
        return  # PEFT's own configuration class checks it when its layer is made
    if config.get("peft_type") != "LORA":
        raise UnsupportedAdapter(
            f"Adapter {name} is of type {config.get('peft_type')!r}; supported are LORA, TRAINABLE_TOKENS, "
            f"{', '.join(sorted(LAYER_TYPES))}.",
            "It adds to the prompt or to the activations, or cannot be merged: use it with PEFT, unmerged.",
        )
    for key in ("r", "lora_alpha"):
        _check_number(name, key, config.get(key))
    for key in ("rank_pattern", "alpha_pattern"):
        _check_pattern(name, key, config.get(key))
    if config.get("init_lora_weights", True) not in EXACT_INITS:
        raise UnsupportedAdapter(
            f"Adapter {name} was initialized with init_lora_weights = {config['init_lora_weights']!r}, which "
            "changes the base it was trained on: adding it to the untouched base would be wrong.",
            "Convert it to a plain LoRA with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…).",
        )
    for key in sorted(set(config) - HARMLESS_KEYS - KNOWN_KEYS):
        if config[key] not in (None, False, 0, "", [], {}):
            raise UnsupportedAdapter(
                f"Adapter {name}: adapter_config.json has {key} = {config[key]!r}, which changes the result and "
                "is not supported.",
                "Merge it with PEFT, or set the key to null if you know that it was not used.",
            )


def _check_number(name: str, key: str, value: object) -> None:
    whole = key in ("r", "rank_pattern")
    if not is_number(value) or value <= 0 or (whole and value != int(value)):
        raise IncompleteAdapter(
            f"Adapter {name}: adapter_config.json has {key} = {value!r}; a positive number is needed.",
            "Take adapter_config.json from where the adapter was published.",
        )


def _check_pattern(name: str, key: str, patterns: object) -> None:
    """Refuses patterns (regular expressions from an untrusted file) whose repeated groups could keep the matcher busy for ever."""
    if patterns is None:
        return
    if not isinstance(patterns, dict):
        raise IncompleteAdapter(
            f"Adapter {name}: adapter_config.json has {key} = {patterns!r}; a mapping of modules to numbers is needed.",
            "Take adapter_config.json from where the adapter was published.",
        )
    for pattern, value in patterns.items():
        _check_number(name, key, value)
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UnsupportedAdapter(
                f"Adapter {name}: {key} has {pattern!r}, which is not a valid regular expression ({error}).",
                "Write the modules' names out.",
            ) from error
        if re.search(r"\)[*+{]", pattern):
            raise UnsupportedAdapter(
                f"Adapter {name}: {key} has {pattern!r}, which repeats a group.",
                "Write the modules' names out.",
            )


def _pattern_value(patterns: Mapping[str, Any], module: str, default: float) -> float:
    """Returns the value of the first key that ends the module's name (peft/utils/other.py, get_pattern_key)."""
    for key, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return float(value)
    return default


def scaling_of(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Returns rank and scale of one module: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, eq. 4)."""
    rank = int(_pattern_value(config.get("rank_pattern") or {}, module, config["r"]))
    alpha = _pattern_value(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
