"""An adapter on disk: its configuration and the purpose of each of its tensors, from headers alone."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.adapters.adapter_config import check_config
from services.adapters.expert_packs import ExpertPack, split_packs
from services.adapters.lora_tensors import LoraPair, pair_factors, sort_tensors
from services.adapters.module_names import NameEnds
from services.adapters.tuners import (
    TokenRows,
    TunerLayer,
    is_layer_key,
    split_token_rows,
    tuner_layers,
    uses_layers,
)
from services.architectures.dense_types import TOKEN_MODULES
from services.architectures.json_vocabulary import read_folder_vocabulary
from services.architectures.vocabulary import Vocabulary
from services.errors import IncompleteAdapter, UnsupportedAdapter
from services.files.json_file import read_json
from services.files.tensors import FLOAT_DTYPES, TensorHeader
from services.files.weight_files import read_tensor_file

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter: the pairs that it adds (by tensor), the tensors that it replaces whole, and its tokenizer.

    Tensors have the names of transformers' modules, or after `bind` (services/adapters/binding.py) those of the base's files.
    `same` names a head that the base tied when the adapter was merged, and the input embedding, whose change it shares. `copies`
    are tensors that the file holds a second time, under the head's name. `packs` are pairs for all experts, which `bind` turns into pairs.
    """

    name: str
    folder: Path
    weights: Path
    config: Mapping[str, Any]
    pairs: Mapping[str, LoraPair]
    replaced: Mapping[str, TensorHeader]
    vocabulary: Vocabulary | None
    layers: Mapping[str, TunerLayer] = field(default_factory=dict)
    rows: Mapping[str, TokenRows] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, TensorHeader] = field(default_factory=dict)
    packs: Mapping[str, ExpertPack] = field(default_factory=dict)

    @property
    def config_file(self) -> Path:
        """Path of `adapter_config.json`."""
        return self.folder / CONFIG_FILE

    @property
    def changed(self) -> frozenset[str]:
        """Names of all tensors of the base that it changes."""
        return frozenset({*self.pairs, *self.replaced, *self.layers, *self.rows})

    @property
    def headers(self) -> Iterator[TensorHeader]:
        """Every tensor of the file, once."""
        halves = [half for pair in self.pairs.values() for half in (pair.a, pair.b)]
        halves += [half for pack in self.packs.values() for half in (pack.a, pack.b)]
        yield from {header.name: header for header in halves}.values()
        yield from self.replaced.values()
        yield from self.copies.values()
        yield from (rows.rows for rows in self.rows.values())
        for layer in self.layers.values():
            yield from layer.tensors.values()
        yield from next((layer.shared.values() for layer in self.layers.values()), ())

    @property
    def vocabulary_rows(self) -> int | None:
        """Rows of the embeddings that it replaces, None if it replaces none."""
        rows = [
            tensor.shape[0]
            for name, tensor in self.replaced.items()
            if name.rsplit(".", 2)[-2] in TOKEN_MODULES
        ]
        return max(rows, default=None)

    @property
    def tensor_count(self) -> int:
        """Number of tensors in the file."""
        return sum(1 for _ in self.headers)


def is_adapter(folder: Path) -> bool:
    """Returns True if a folder has the configuration or the weights of an adapter."""
    return any((folder / name).is_file() for name in (CONFIG_FILE, *WEIGHT_FILES))


def read_adapter(folder: Path, name: str | None = None, *, experts: bool = False) -> Adapter:
    """Returns the description of an adapter; every tensor of its file is part of the result.

    Args:
        experts: Pairs for all experts of a layer are accepted: the caller binds the adapter to its base (`bind`).

    Raises:
        IncompleteAdapter: The configuration, the weights, half a pair or a declared module is missing.
        UnsupportedAdapter: An option changes the result and is not supported.
        UnknownAdapterKey: The name of a tensor is not understood.
        ShapeMismatch: The halves of a pair do not fit each other or the declared rank.
    """
    name = name or folder.name
    config_path = folder / CONFIG_FILE
    if not config_path.is_file():
        raise IncompleteAdapter(
            f"Adapter {name} has no adapter_config.json.",
            "Add it: it holds the rank and scale that the merge needs.",
        )
    config = read_json(config_path)
    check_config(name, config)
    weights = _weights_file(folder, name)
    tensors = read_tensor_file(weights)
    if not tensors:
        raise IncompleteAdapter(
            f"Adapter {name}: {weights.name} ({weights.stat().st_size} bytes) holds no tensors.",
            "It was saved empty, which some training set-ups do: get the trained weights.",
        )
    for key, tensor in tensors.items():
        _check_tensor(name, key, tensor)
    rows, rest = split_token_rows(name, config, tensors)
    layers: dict[str, TunerLayer] = {}
    if uses_layers(config):
        own = {key: tensor for key, tensor in rest.items() if is_layer_key(config, key)}
        layers = tuner_layers(name, config, own)
        rest = {key: tensor for key, tensor in rest.items() if key not in own}
    halves, replaced = sort_tensors(name, rest)
    packs, halves = split_packs(name, config, halves)
    if packs and not experts:
        raise UnsupportedAdapter(
            f"Adapter {name} changes experts by target_parameters; only a merge takes it.",
            "Merge it into its base.",
        )
    pairs = pair_factors(name, config, halves)
    _check_declared(name, config, [*pairs, *layers, *rows], replaced)
    vocabulary = read_folder_vocabulary(folder)
    return Adapter(name, folder, weights, config, pairs, replaced, vocabulary, layers, rows, packs=packs)


def _weights_file(folder: Path, name: str) -> Path:
    for file in WEIGHT_FILES:
        if (folder / file).is_file():
            return folder / file
    raise IncompleteAdapter(
        f"Adapter {name} has an adapter_config.json and no weights ({' or '.join(WEIGHT_FILES)}).",
        "Add the weight file.",
    )


def _check_tensor(name: str, key: str, tensor: TensorHeader) -> None:
    if tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedAdapter(
            f"Adapter {name}: {key!r} has dtype {tensor.dtype}; supported are {', '.join(FLOAT_DTYPES)}.",
            "Use an unquantized adapter.",
        )
    if 0 in tensor.shape:
        raise IncompleteAdapter(
            f"Adapter {name}: {key!r} has shape {list(tensor.shape)}: it was saved without its rows "
            "(as DeepSpeed ZeRO-3 does when tensors are not gathered).",
            "Save the adapter again with the parameters gathered.",
        )


def _check_declared(
    name: str, config: Mapping[str, Any], changed: Iterable[str], replaced: Mapping[str, TensorHeader]
) -> None:
    saved = config.get("modules_to_save") or []
    missing = _missing(
        saved, (tensor.removesuffix(".weight") for tensor in replaced if tensor.endswith(".weight"))
    )
    if missing is not None:
        raise IncompleteAdapter(
            f"Adapter {name}: adapter_config.json says modules_to_save has {missing!r}; the file holds no such tensor.",
            "The adapter's file is incomplete: fetch it again.",
        )
    targets = config.get("target_modules")
    modules = (tensor.removesuffix(".weight") for tensor in changed)
    missing = _missing(targets, modules) if isinstance(targets, list) else None
    if missing is not None:
        raise IncompleteAdapter(
            f"Adapter {name}: adapter_config.json says target_modules has {missing!r}; the file holds no pair for it.",
            "The adapter's file is incomplete: fetch it again.",
        )


def _missing(ends: Sequence[str], names: Iterable[str]) -> str | None:
    """Returns the first of the ends that no name has, None if there is none."""
    wanted = NameEnds(ends)
    found = {end for name in names for end in wanted.of(name)}
    return next((end for end in ends if end not in found), None)
