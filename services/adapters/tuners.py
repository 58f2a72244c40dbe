"""Tensors of adapters that PEFT's own layers merge, by module, and rows of trained tokens.

Every key is `base_model.model.<module>.<parameter of the tuner>`; a few tuners share tensors between all modules.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from services.adapters.module_names import NameEnds
from services.errors import IncompleteAdapter, UnknownAdapterKey, UnsupportedAdapter
from services.files.tensors import TensorHeader

LAYER_TYPES = frozenset({
    "ADALORA", "BOFT", "FOURIERFT", "GRALORA", "HRA", "IA3", "LOHA", "LOKR", "MISS", "OFT", "RANDLORA", "VERA",
})  # fmt: skip
"""PEFT's tuner types that are merged with PEFT's own layers, one module at a time; each is tested against PEFT."""

SHARED = {"RANDLORA": ("randlora_A", "randlora_B"), "VERA": ("vera_A", "vera_B")}
"""Tensors that all modules of a tuner share; each uses a part of its own size (peft/tuners/vera/layer.py, get_delta_weight)."""

PREFIX = "base_model.model."

_LAYER_KEY = re.compile(
    r"(?P<module>.+?)\.(?P<leaf>(?:lora|hada|lokr|ia3|oft|boft|fourierft|hra|miss|gralora|randlora|vera)_\w+(?:\..+)?)"
)
"""A module, and a parameter of one of the tuners: their names all begin with the tuner's."""

_TOKEN_ROWS = re.compile(r"(?P<module>.+?)\.(?:token_adapter\.)?trainable_tokens_delta(?:\.[^.]+)?")


@dataclass(frozen=True, slots=True)
class TunerLayer:
    """A tuner's change of one module: its tensors by their full keys, and the shared ones."""

    module: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader]
    shared: Mapping[str, TensorHeader]

    @property
    def tensor(self) -> str:
        """Name of the tensor that it changes."""
        return f"{self.module}.weight"


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Trained rows of an embedding: row `indices[i]` becomes row i of `rows`."""

    indices: tuple[int, ...]
    rows: TensorHeader


def uses_layers(config: Mapping[str, Any]) -> bool:
    """Returns True if PEFT's layers compute an adapter's changes: it is another tuner than LoRA, or LoRA with DoRA."""
    return config.get("peft_type") in LAYER_TYPES or bool(config.get("use_dora"))


def is_layer_key(config: Mapping[str, Any], key: str) -> bool:
    """Returns True for a tensor of the tuner itself, False for one that the adapter saves whole."""
    return _is_shared(config, key) or _LAYER_KEY.fullmatch(key.removeprefix(PREFIX)) is not None


def tuner_layers(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> dict[str, TunerLayer]:
    """Returns the layers of a tuner by the tensor that each changes; every tensor is part of the result.

    Raises:
        UnknownAdapterKey: A key is not that of a module's parameter.
        IncompleteAdapter: The file lacks tensors that all modules share.
        UnsupportedAdapter: The adapter was saved without the tensors that all modules share.
    """
    shared = {key: header for key, header in tensors.items() if _is_shared(config, key)}
    modules: dict[str, dict[str, TensorHeader]] = {}
    for key, header in tensors.items():
        match = _LAYER_KEY.fullmatch(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None
        if match is not None:
            modules.setdefault(match["module"], {})[key] = header
        elif key not in shared:
            raise UnknownAdapterKey(
                f"Adapter {name} ({config.get('peft_type')}) holds {key!r}, which is not a tensor of such a tuner.",
                "Nothing is dropped without being understood: re-save the adapter with PEFT.",
            )
    _check_shared(name, config, modules, shared)
    layers = [TunerLayer(module, config, found, shared) for module, found in modules.items()]
    return {layer.tensor: layer for layer in layers}


def _check_shared(
    name: str, config: Mapping[str, Any], modules: Iterable[str], shared: Mapping[str, TensorHeader]
) -> None:
    """Refuses shared projections that are not in the file, unless PEFT can draw them again from the seed.

    The drawn values depend on the sizes of all modules, and with RandLoRA on the dtypes that the machine has.
    """
    tuner = str(config.get("peft_type"))
    wanted = SHARED.get(tuner, ())
    if len(shared) == len(wanted):
        return
    if config.get("save_projection", True):
        raise IncompleteAdapter(
            f"Adapter {name} ({tuner}): save_projection is set; the file holds {len(shared)} of {', '.join(wanted)}.",
            "The adapter's file is incomplete: fetch it again.",
        )
    kinds = sorted({module.rsplit(".", 1)[-1] for module in modules})
    if len(kinds) > 1 or tuner == "RANDLORA":
        raise UnsupportedAdapter(
            f"Adapter {name} ({tuner}) was saved with save_projection = false and changes {', '.join(kinds)}: the projections "
            "that they share are not in the file.",
            "Save it again with save_projection=True.",
        )


def _is_shared(config: Mapping[str, Any], key: str) -> bool:
    return key.removeprefix("base_model.") in SHARED.get(str(config.get("peft_type")), ())


def split_token_rows(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, TensorHeader]
) -> tuple[dict[str, TokenRows], dict[str, TensorHeader]]:
    """Returns the rows of trained tokens by their tensor, and the other tensors.

    Raises:
        IncompleteAdapter: Rows and `trainable_token_indices` do not agree.
    """
    found = {key: match for key in tensors if (match := _TOKEN_ROWS.fullmatch(key.removeprefix(PREFIX)))}
    rows: dict[str, TokenRows] = {}
    indices_of = _indices(config)
    for key, match in found.items():
        indices = indices_of(match["module"])
        if tensors[key].shape[:1] != (len(indices),):
            raise IncompleteAdapter(
                f"Adapter {name}: {key!r} has {next(iter(tensors[key].shape), 'no')} rows; adapter_config.json names {len(indices)} "
                f"trained tokens for {match['module']!r}.",
                "Use the adapter_config.json that belongs to these weights.",
            )
        rows[f"{match['module']}.weight"] = TokenRows(indices, tensors[key])
    if not rows and (config.get("trainable_token_indices") or config.get("peft_type") == "TRAINABLE_TOKENS"):
        raise IncompleteAdapter(
            f"Adapter {name}: adapter_config.json names trained tokens; the file holds no rows of them.",
            "The adapter's file is incomplete: fetch it again.",
        )
    return rows, {key: header for key, header in tensors.items() if key not in found}


def _indices(config: Mapping[str, Any]) -> Callable[[str], tuple[int, ...]]:
    """Returns the token ids by module, from either form of PEFT: a list for the embeddings, or lists by module name."""
    given = config.get("trainable_token_indices") or config.get("token_indices") or []
    if not isinstance(given, Mapping):
        return lambda module: tuple(given)
    ends, order = NameEnds(given), {end: number for number, end in enumerate(given)}
    return lambda module: tuple(given.get(min(ends.of(module), key=order.__getitem__, default=""), ()))
