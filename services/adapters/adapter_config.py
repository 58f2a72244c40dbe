"""Configuration of an adapter: checks of PEFT's keys, rank and scale of each module.

Keys are those of PEFT's LoraConfig. A key that changes the result and is not supported is refused by name; an unknown key
passes only if it is null, false or empty (the configs of 2023 have some).
"""

import math
from collections.abc import Mapping
from typing import Any

from services.adapters.module_names import ModulePatterns
from services.adapters.tuners import LAYER_TYPES
from services.bounded_text import cut
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


LISTS = ("modules_to_save", "target_parameters")
"""Keys whose value is a list of names, or null."""

TOKEN_KEYS = ("trainable_token_indices", "token_indices")
"""Keys whose value is a list of token ids, or such lists by the names of modules, or null."""

TOKENS_LIMIT = 2**31
HINT = "Take adapter_config.json from where the adapter was published."


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Refuses options that would change the result and are not honoured.

    Raises:
        UnsupportedAdapter: The type of adapter or an option is not supported.
        IncompleteAdapter: A number is missing or not positive, or a value is of another type.
    """
    _check_lists(name, config)
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
        _check_patterns(name, key, config.get(key))
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
            HINT,
        )


def _check_patterns(name: str, key: str, patterns: object) -> None:
    if patterns is not None and not isinstance(patterns, dict):
        raise IncompleteAdapter(
            f"Adapter {name}: adapter_config.json has {key} = {patterns!r}; a mapping of modules to numbers is needed.",
            HINT,
        )
    for value in (patterns or {}).values():
        _check_number(name, key, value)


def _check_lists(name: str, config: Mapping[str, Any]) -> None:
    for key in LISTS:
        if not _is_list_of(str, config.get(key) or []):
            raise _wrong_type(name, key, config, "a list of names")
    targets = config.get("target_modules")
    if not isinstance(targets, str) and not _is_list_of(str, targets or []):
        raise _wrong_type(name, "target_modules", config, "a list of names or one expression")
    for key in TOKEN_KEYS:
        given = config.get(key) or []
        for indices in given.values() if isinstance(given, dict) else [given]:
            if not _is_list_of(int, indices) or not all(0 <= index < TOKENS_LIMIT for index in indices):
                raise _wrong_type(name, key, config, "a list of token ids, or such lists by module,")


def _is_list_of(kind: type, values: object) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _wrong_type(name: str, key: str, config: Mapping[str, Any], needed: str) -> IncompleteAdapter:
    shown = cut(repr(config[key]), 200)
    return IncompleteAdapter(
        f"Adapter {name}: adapter_config.json has {key} = {shown}; {needed} is needed.", HINT
    )


class Scales:
    """Ranks and scales of the modules of a LoRA adapter.

    Raises:
        UnsupportedAdapter: The configuration is of another tuner, or has an expression that is not valid or takes too long.
    """

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        """Takes a configuration that `check_config` has accepted."""
        self._name = name
        self._config = config
        self._ranks, self._alphas = (
            ModulePatterns(name, key, (config.get(key) or {}) if config.get("peft_type") == "LORA" else {})
            for key in ("rank_pattern", "alpha_pattern")
        )

    def of(self, module: str) -> tuple[int, float]:
        """Returns rank and scale of one module: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, eq. 4)."""
        config = self._config
        if config.get("peft_type") != "LORA":
            raise UnsupportedAdapter(
                f"Adapter {self._name} is of type {config.get('peft_type')!r} and holds LoRA factors for {module!r}.",
                "Re-save the adapter with PEFT.",
            )
        rank = int(self._ranks.value(module, config["r"]))
        alpha = float(self._alphas.value(module, config["lora_alpha"]))
        return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
