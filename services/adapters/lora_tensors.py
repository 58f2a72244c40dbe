"""Tensors of an adapter's file that belong to LoRA: pairs of factors, and modules that replace the base's."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.adapters.adapter_config import Scales
from services.adapters.module_names import NameEnds
from services.adapters.tuners import PREFIX
from services.errors import IncompleteAdapter, ShapeMismatch, UnknownAdapterKey, UnsupportedAdapter
from services.files.tensors import TensorHeader

_LORA = re.compile(
    r"(?P<module>.+)\.(?P<half>lora_(?:embedding_)?[AB])(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.weight)?"
)
_WHOLE = re.compile(r"(?!.*\.lora_)(?!.*\.base_layer\.weight).+\.(?:weight|bias)")
"""A tensor that is saved whole: a module, a norm, or the bias of a module that the adapter changes."""

_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>weight|bias)")


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """Part of a pair for all experts that changes one tensor: the expert, the number of experts, and the rows of B."""

    number: int
    count: int
    rows: slice


@dataclass(frozen=True, slots=True)
class LoraPair:
    """Factors of one module's change: `scaling * B @ A`, shapes A (r, in) and B (out, r).

    For an embedding the change is `scaling * (B @ A)` transposed, shapes A (r, vocabulary) and B (hidden, r). Of a pair for all
    experts (services/adapters/expert_packs.py) `expert` is the part that changes this tensor.
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
    expert: ExpertPart | None = None

    @property
    def tensor(self) -> str:
        """Name of the tensor that it changes."""
        return f"{self.module}.weight"

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the tensor that it changes."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        if self.expert is not None:
            rows = len(range(rows)[self.expert.rows])
        return (columns, rows) if self.transposed else (rows, columns)


def sort_tensors(
    name: str, tensors: Mapping[str, TensorHeader]
) -> tuple[dict[str, dict[str, TensorHeader]], dict[str, TensorHeader]]:
    halves: dict[str, dict[str, TensorHeader]] = {}
    replaced: dict[str, TensorHeader] = {}
    inner_names: set[str] = set()
    for key, tensor in tensors.items():
        rest = key.removeprefix(PREFIX)
        if lora := _LORA.fullmatch(rest):
            inner_names.add(lora["adapter"] or "")
            _put(name, halves.setdefault(lora["module"], {}), lora["half"], key, tensor)
        elif saved := _SAVED.fullmatch(rest):
            inner_names.add(saved["adapter"] or "")
            _put(name, replaced, f"{saved['module']}.{saved['leaf']}", key, tensor)
        elif rest != key and _WHOLE.fullmatch(rest):
            _put(name, replaced, rest.replace(".base_layer.bias", ".bias"), key, tensor)
        else:
            raise UnknownAdapterKey(
                f"Adapter {name} holds {key!r}, which is neither half of a LoRA pair nor a saved module.",
                "Nothing is dropped without being understood: re-save the adapter with PEFT, or merge it there.",
            )
    named = sorted(inner_names - {""})
    if len(named) > 1:
        raise UnsupportedAdapter(
            f"Adapter {name}: its file holds {len(named)} adapters ({', '.join(named)}); one is needed.",
            "Save each adapter to a folder of its own.",
        )
    return halves, replaced


def _put(name: str, place: dict[str, TensorHeader], slot: str, key: str, tensor: TensorHeader) -> None:
    if slot in place:
        raise UnknownAdapterKey(
            f"Adapter {name} holds {slot!r} twice, as {place[slot].name!r} and {key!r}.",
            "One of the two is a leftover: re-save the adapter with PEFT.",
        )
    place[slot] = tensor


def pair_factors(
    name: str, config: Mapping[str, Any], halves: Mapping[str, Mapping[str, TensorHeader]]
) -> dict[str, LoraPair]:
    pairs: dict[str, LoraPair] = {}
    scales, parameters = Scales(name, config), NameEnds(config.get("target_parameters") or [])
    for module, found in halves.items():
        embedding = "lora_embedding_A" in found or "lora_embedding_B" in found
        wanted = {"lora_embedding_A", "lora_embedding_B"} if embedding else {"lora_A", "lora_B"}
        if set(found) != wanted:
            raise IncompleteAdapter(
                f"Adapter {name}: module {module!r} has {', '.join(sorted(found))}; needed are "
                f"{' and '.join(sorted(wanted))}.",
                "The adapter's file is incomplete: fetch it again.",
            )
        prefix = "lora_embedding_" if embedding else "lora_"
        rank, scaling = scales.of(module)
        rounded = embedding or any(parameters.of(f"{module}.weight"))
        pair = LoraPair(module, found[f"{prefix}A"], found[f"{prefix}B"], rank, scaling, embedding, rounded)
        _check_pair(name, pair)
        pairs[pair.tensor] = pair
    return pairs


def _check_pair(name: str, pair: LoraPair) -> None:
    a, b = pair.a.shape, pair.b.shape
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise ShapeMismatch(
            f"Adapter {name}: module {pair.module!r} has A of shape {list(a)} and B of shape {list(b)}; needed are "
            "[r, in] and [out, r].",
            "The adapter's file is damaged: fetch it again.",
        )
    if a[0] != pair.rank:
        raise ShapeMismatch(
            f"Adapter {name}: adapter_config.json says rank {pair.rank} for {pair.module!r}; its A has {a[0]} rows, "
            "so the scale would be wrong.",
            "Use the adapter_config.json that belongs to these weights.",
        )
