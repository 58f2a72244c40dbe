"""A LoRA adapter on disk: its configuration and what each of its tensors does, from headers alone.

Configuration keys are those of PEFT's LoraConfig. A key that changes the result and is not supported is refused by
name; a key nobody knows passes only where it is null, false or empty (the configs of 2023 carry some).
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.adapters.tuners import (
    LAYER_TYPES,
    TokenRows,
    TunerLayer,
    split_token_rows,
    tuner_layers,
    uses_layers,
)
from services.architectures.vocabulary import Vocabulary, read_vocabulary
from services.errors import IncompleteAdapter, ShapeMismatch, UnknownAdapterKey, UnsupportedAdapter
from services.files.json_file import is_number, read_json
from services.files.tensors import FLOAT_DTYPES, TensorHeader
from services.files.weight_files import read_tensor_file

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")

HARMLESS_KEYS = frozenset({
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
})  # fmt: skip
"""Keys that say how an adapter was trained; a merge does not depend on them. `fan_in_fan_out` is for Conv1D layers: PEFT
sets it to false on the linear layers that LLaMA has (peft/tuners/lora/model.py, dispatch_default)."""

KNOWN_KEYS = frozenset({
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "bias",
    "init_lora_weights", "use_dora", "trainable_token_indices", "target_parameters",
})  # fmt: skip
"""Keys that change the result and are honoured."""

EXACT_INITS = (True, False, "gaussian", "eva", "orthogonal", "lora_ga_none")
"""Initialisations that leave the base as it was; PiSSA, CorDA, OLoRA and LoftQ change it."""

_PREFIX = "base_model.model."
_LORA = re.compile(
    r"(?P<module>.+)\.(?P<half>lora_(?:embedding_)?[AB])(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.weight)?"
)
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>weight|bias)")


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two halves of one module's change: `scaling * B @ A`, shapes A (r, in) and B (out, r).

    For an embedding the change is `scaling * (B @ A)` transposed, shapes A (r, vocabulary) and B (hidden, r).
    """

    module: str
    a: TensorHeader
    b: TensorHeader
    rank: int
    scaling: float
    transposed: bool = False
    rounded: bool = (
        False  # to the weight's dtype before it is added, as PEFT does for embeddings and target parameters
    )

    @property
    def tensor(self) -> str:
        """The name of the tensor that it changes."""
        return f"{self.module}.weight"

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the tensor that it changes."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.transposed else (rows, columns)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter: the pairs it adds (by tensor), the tensors it replaces whole, and its tokenizer."""

    name: str
    folder: Path
    weights: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, TensorHeader]
    vocabulary: Vocabulary | None
    layers: Mapping[str, TunerLayer] = field(default_factory=dict)
    rows: Mapping[str, TokenRows] = field(default_factory=dict)

    @property
    def config_file(self) -> Path:
        """Its `adapter_config.json`."""
        return self.folder / CONFIG_FILE

    @property
    def changed(self) -> frozenset[str]:
        """The names of all tensors that it changes."""
        return frozenset({*self.pairs, *self.replaced, *self.layers, *self.rows})

    @property
    def headers(self) -> Iterator[TensorHeader]:
        """Every tensor of its file, once."""
        for pair in self.pairs.values():
            yield from (pair.a, pair.b)
        yield from self.replaced.values()
        yield from (rows.rows for rows in self.rows.values())
        for layer in self.layers.values():
            yield from layer.tensors.values()
        yield from next((layer.shared.values() for layer in self.layers.values()), ())

    @property
    def vocabulary_rows(self) -> int | None:
        """Rows of the embeddings that it brings, None where it brings none."""
        rows = [
            self.replaced[n].shape[0]
            for n in ("model.embed_tokens.weight", "lm_head.weight")
            if n in self.replaced
        ]
        return max(rows, default=None)

    @property
    def tensor_count(self) -> int:
        """How many tensors its file holds."""
        return sum(1 for _ in self.headers)


def is_adapter(folder: Path) -> bool:
    """Whether a folder has what makes an adapter: its config or its weights."""
    return any((folder / name).is_file() for name in (CONFIG_FILE, *WEIGHT_FILES))


def read_adapter(folder: Path, name: str | None = None) -> Adapter:
    """Describes an adapter; every tensor of its file has a place in the result.

    Raises:
        IncompleteAdapter: config or weights missing, no tensors, half a pair, a declared module without tensors.
        UnsupportedAdapter: an option that changes the result and is not supported.
        UnknownAdapterKey: a tensor of a form that is not understood.
        ShapeMismatch: the halves of a pair do not fit each other or the declared rank.
    """
    name = name or folder.name
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise IncompleteAdapter(
            f"adapter {name} has no adapter_config.json",
            "Add it: it holds the rank and scale that the merge needs.",
        )
    config = read_json(config_path)
    check_config(name, config)
    weights = _weights_file(folder, name)
    tensors = read_tensor_file(weights)
    if not tensors:
        raise IncompleteAdapter(
            f"adapter {name}: {weights.name} ({weights.stat().st_size} bytes) holds no tensors",
            "It was saved empty (a known fault of some training set-ups): get the trained weights.",
        )
    for key, tensor in tensors.items():
        _check_tensor(name, key, tensor)
    rows, rest = split_token_rows(name, config, tensors)
    layers: dict[str, TunerLayer] = {}
    if uses_layers(config):
        own = {key: tensor for key, tensor in rest.items() if not _is_saved(key)}
        layers = tuner_layers(name, config, own)
        rest = {key: tensor for key, tensor in rest.items() if key not in own}
    halves, replaced = _sort_tensors(name, rest)
    pairs = _pairs(name, config, halves)
    _check_declared(name, config, [*pairs, *layers, *rows], replaced)
    tokenizer = folder / "tokenizer.model"
    vocabulary = read_vocabulary(tokenizer) if tokenizer.is_file() else None
    return Adapter(name, folder, weights, config, pairs, replaced, vocabulary, layers, rows)


def _is_saved(key: str) -> bool:
    """Whether a tuner's file holds this tensor as a saved module, not as one of the tuner's own."""
    rest = key.removeprefix(_PREFIX)
    return bool(_SAVED.fullmatch(rest)) or rest in (
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
    )


def _weights_file(folder: Path, name: str) -> Path:
    for file in WEIGHT_FILES:
        if (folder / file).is_file():
            return folder / file
    raise IncompleteAdapter(
        f"adapter {name} has an adapter_config.json and no weights ({' or '.join(WEIGHT_FILES)})",
        "Add the weight file.",
    )


# ---- configuration ------------------------------------------------------------------------------------


def check_config(name: str, config: Mapping[str, Any]) -> None:
    """Refuses what would change the result and is not honoured.

    Raises:
        UnsupportedAdapter, IncompleteAdapter: the key, its value, and what to do.
    """
    if config.get("peft_type") in (*LAYER_TYPES, "TRAINABLE_TOKENS"):
        return  # PEFT's own configuration class checks it when its layer is made
    if config.get("peft_type") != "LORA":
        raise UnsupportedAdapter(
            f"adapter {name} is of type {config.get('peft_type')!r}, supported are LORA, TRAINABLE_TOKENS, "
            f"{', '.join(sorted(LAYER_TYPES))}",
            "It adds to the prompt or to the activations, or cannot be merged: use it with PEFT, unmerged.",
        )
    for key in ("r", "lora_alpha"):
        _check_number(name, key, config.get(key))
    for key in ("rank_pattern", "alpha_pattern"):
        _check_pattern(name, key, config.get(key))
    if config.get("init_lora_weights", True) not in EXACT_INITS:
        raise UnsupportedAdapter(
            f"adapter {name} was initialised with init_lora_weights = {config['init_lora_weights']!r}, which "
            "changes the base it was trained on: adding it to the untouched base would be wrong",
            "Convert it to a plain LoRA with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…).",
        )
    for key in sorted(set(config) - HARMLESS_KEYS - KNOWN_KEYS):
        if config[key] not in (None, False, 0, "", [], {}):
            raise UnsupportedAdapter(
                f"adapter {name}: adapter_config.json has {key} = {config[key]!r}, which changes the result and "
                "is not supported",
                "Merge it with PEFT, or set the key to null if you know that it was not used.",
            )


def _check_number(name: str, key: str, value: object) -> None:
    whole = key in ("r", "rank_pattern")
    if not is_number(value) or value <= 0 or (whole and value != int(value)):
        raise IncompleteAdapter(
            f"adapter {name}: adapter_config.json has {key} = {value!r}, a positive number is needed",
            "Take adapter_config.json from where the adapter was published.",
        )


def _check_pattern(name: str, key: str, patterns: object) -> None:
    """Patterns are regular expressions that a stranger wrote: a repeated group could keep the matcher busy for ever."""
    if patterns is None:
        return
    if not isinstance(patterns, dict):
        raise IncompleteAdapter(
            f"adapter {name}: adapter_config.json has {key} = {patterns!r}, a mapping of modules to numbers is needed",
            "Take adapter_config.json from where the adapter was published.",
        )
    for pattern, value in patterns.items():
        _check_number(name, key, value)
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UnsupportedAdapter(
                f"adapter {name}: {key} has {pattern!r}, which is no regular expression ({error})",
                "Write the modules' names out.",
            ) from error
        if re.search(r"\)[*+{]", pattern):
            raise UnsupportedAdapter(
                f"adapter {name}: {key} has {pattern!r}, which repeats a group",
                "Write the modules' names out.",
            )


def _pattern_value(patterns: Mapping[str, Any], module: str, default: float) -> float:
    """PEFT's rule (peft/utils/other.py, get_pattern_key): the first key that ends the module's name counts."""
    for key, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return float(value)
    return default


def scaling_of(config: Mapping[str, Any], module: str) -> tuple[int, float]:
    """Rank and scale of one module: alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, eq. 4)."""
    rank = int(_pattern_value(config.get("rank_pattern") or {}, module, config["r"]))
    alpha = _pattern_value(config.get("alpha_pattern") or {}, module, config["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


# ---- tensors ------------------------------------------------------------------------------------------


def _sort_tensors(
    name: str, tensors: Mapping[str, TensorHeader]
) -> tuple[dict[str, dict[str, TensorHeader]], dict[str, TensorHeader]]:
    halves: dict[str, dict[str, TensorHeader]] = {}
    replaced: dict[str, TensorHeader] = {}
    inner_names: set[str] = set()
    for key, tensor in tensors.items():
        rest = key.removeprefix(_PREFIX)
        if lora := _LORA.fullmatch(rest):
            inner_names.add(lora["adapter"] or "")
            _put(name, halves.setdefault(lora["module"], {}), lora["half"], key, tensor)
        elif rest != key and rest.endswith((".base_layer.bias", "_proj.bias")):
            _put(name, replaced, rest.replace(".base_layer.bias", ".bias"), key, tensor)
        elif saved := _SAVED.fullmatch(rest):
            inner_names.add(saved["adapter"] or "")
            _put(name, replaced, f"{saved['module']}.{saved['leaf']}", key, tensor)
        elif rest != key and rest.endswith(".weight") and ".lora_" not in rest and ".base_layer." not in rest:
            _put(name, replaced, rest, key, tensor)
        else:
            raise UnknownAdapterKey(
                f"adapter {name} holds {key!r}, which is neither half of a LoRA pair nor a saved module",
                "Nothing is dropped without being understood: re-save the adapter with PEFT, or merge it there.",
            )
    named = sorted(inner_names - {""})
    if len(named) > 1:
        raise UnsupportedAdapter(
            f"adapter {name}: its file holds {len(named)} adapters ({', '.join(named)}), one is needed",
            "Save each adapter to a folder of its own.",
        )
    return halves, replaced


def _check_tensor(name: str, key: str, tensor: TensorHeader) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedAdapter(
            f"adapter {name}: {key!r} has dtype {tensor.dtype}, supported are {', '.join(FLOAT_DTYPES)}",
            "Use an unquantised adapter.",
        )
    if 0 in tensor.shape:
        raise IncompleteAdapter(
            f"adapter {name}: {key!r} has shape {list(tensor.shape)}: it was saved without its rows "
            "(as DeepSpeed ZeRO-3 does when tensors are not gathered)",
            "Save the adapter again with the parameters gathered.",
        )


def _put(name: str, place: dict[str, TensorHeader], slot: str, key: str, tensor: TensorHeader) -> None:
    if slot in place:
        raise UnknownAdapterKey(
            f"adapter {name} holds {slot!r} twice, as {place[slot].name!r} and {key!r}",
            "One of the two is a leftover: re-save the adapter with PEFT.",
        )
    place[slot] = tensor


def _pairs(
    name: str, config: Mapping[str, Any], halves: Mapping[str, Mapping[str, TensorHeader]]
) -> dict[str, LoraPair]:
    pairs: dict[str, LoraPair] = {}
    for module, found in halves.items():
        embedding = "lora_embedding_A" in found or "lora_embedding_B" in found
        wanted = {"lora_embedding_A", "lora_embedding_B"} if embedding else {"lora_A", "lora_B"}
        if set(found) != wanted:
            raise IncompleteAdapter(
                f"adapter {name}: module {module!r} has {', '.join(sorted(found))}, needed are "
                f"{' and '.join(sorted(wanted))}",
                "The adapter's file is incomplete: fetch it again.",
            )
        prefix = "lora_embedding_" if embedding else "lora_"
        rank, scaling = scaling_of(config, module)
        parameters = config.get("target_parameters") or []
        rounded = embedding or any(f".{module}.weight".endswith(f".{parameter}") for parameter in parameters)
        pair = LoraPair(module, found[f"{prefix}A"], found[f"{prefix}B"], rank, scaling, embedding, rounded)
        _check_pair(name, pair)
        pairs[pair.tensor] = pair
    return pairs


def _check_pair(name: str, pair: LoraPair) -> None:
    a, b = pair.a.shape, pair.b.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise ShapeMismatch(
            f"adapter {name}: module {pair.module!r} has A of shape {list(a)} and B of shape {list(b)}, needed are "
            "[r, in] and [out, r]",
            "The adapter's file is damaged: fetch it again.",
        )
    if a[0] != pair.rank:
        raise ShapeMismatch(
            f"adapter {name}: adapter_config.json says rank {pair.rank} for {pair.module!r}, its A has {a[0]} rows: "
            "the scale would be wrong",
            "Use the adapter_config.json that belongs to these weights.",
        )


def _check_declared(
    name: str, config: Mapping[str, Any], changed: Iterable[str], replaced: Mapping[str, TensorHeader]
) -> None:
    modules = [tensor.removesuffix(".weight") for tensor in changed]
    for module in config.get("modules_to_save") or []:
        if not any(f".{tensor}".endswith(f".{module}.weight") for tensor in replaced):
            raise IncompleteAdapter(
                f"adapter {name}: adapter_config.json says modules_to_save has {module!r}, the file holds no such "
                "tensor",
                "The adapter's file is incomplete: fetch it again.",
            )
    targets = config.get("target_modules")
    for target in targets if isinstance(targets, list) else []:
        if not any(f".{module}".endswith(f".{target}") for module in modules):
            raise IncompleteAdapter(
                f"adapter {name}: adapter_config.json says target_modules has {target!r}, the file holds no pair for it",
                "The adapter's file is incomplete: fetch it again.",
            )
