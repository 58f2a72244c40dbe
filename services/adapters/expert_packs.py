"""LoRA pairs of all experts of a layer in one: PEFT's packing of `target_parameters` of three dimensions.

A has shape (experts * r, in) with an expert's rows together, B (out, r * experts) with an expert's columns apart by the number of
experts (peft/tuners/lora/layer.py, ParamWrapper.get_delta_weight of PEFT 0.21). A second parameter of the same module is wrapped
around the first one, under the name `base_layer`; their shapes tell which is which.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.adapters.adapter_config import Scales
from services.adapters.lora_tensors import ExpertPart, LoraPair
from services.architectures.mixtures import DOWN, GATE_UP, MixtureClass
from services.errors import AdapterMismatch, IncompleteAdapter, UnknownAdapterKey, UnsupportedAdapter
from services.files.tensors import TensorHeader

_EXPERTS = re.compile(r"(?P<module>.+\.experts)(?:\.base_layer)*")


@dataclass(frozen=True, slots=True)
class ExpertPack:
    """Factors of the changes of all experts of a layer, and the class's parameters that they may belong to."""

    module: str
    a: TensorHeader
    b: TensorHeader
    rank: int
    scaling: float
    parameters: frozenset[str]


def split_packs(
    name: str, config: Mapping[str, Any], halves: Mapping[str, dict[str, TensorHeader]]
) -> tuple[dict[str, ExpertPack], dict[str, dict[str, TensorHeader]]]:
    """Returns the pairs of all experts by their names in the file, and the halves of other pairs.

    Raises:
        UnsupportedAdapter: The configuration does not record how they are packed.
        IncompleteAdapter: Half a pair is missing.
    """
    modules = {key: match["module"] for key in halves if (match := _EXPERTS.fullmatch(key))}
    if not modules:
        return {}, dict(halves)
    targets = {target.rsplit(".", 1)[-1] for target in config.get("target_parameters") or []}
    parameters = frozenset(targets & {GATE_UP, DOWN})
    if not parameters or not config.get("peft_version"):
        raise UnsupportedAdapter(
            f"Adapter {name} holds one pair for all experts of {min(modules.values())!r}; its adapter_config.json has target_parameters = "
            f"{config.get('target_parameters')!r} and peft_version = {config.get('peft_version')!r}, so how the experts are packed is not "
            "known.",
            "Save the adapter again with the PEFT version that trained it, or merge it there.",
        )
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise UnsupportedAdapter(
            f"Adapter {name} changes experts by target_parameters and has a rank_pattern or an alpha_pattern.",
            "Merge it with PEFT.",
        )
    packs = {
        key: _pack(name, config, key, module, parameters, halves[key]) for key, module in modules.items()
    }
    return packs, {key: found for key, found in halves.items() if key not in modules}


def _pack(
    name: str,
    config: Mapping[str, Any],
    key: str,
    module: str,
    parameters: frozenset[str],
    found: Mapping[str, TensorHeader],
) -> ExpertPack:
    if set(found) != {"lora_A", "lora_B"}:
        raise IncompleteAdapter(
            f"Adapter {name}: {key!r} has {', '.join(sorted(found))}; needed are lora_A and lora_B.",
            "The adapter's file is incomplete: fetch it again.",
        )
    rank, scaling = Scales(name, config).of(module)
    return ExpertPack(module, found["lora_A"], found["lora_B"], rank, scaling, parameters)


def expert_pairs(
    name: str, packs: Mapping[str, ExpertPack], model_class: object, source: Mapping[str, Any]
) -> dict[str, LoraPair]:
    """Returns the pair of each expert's tensors by the class's names with the expert's number.

    Args:
        model_class: Class of the base.
        source: Configuration of the base's text model.

    Raises:
        UnknownAdapterKey: The base has no experts.
        AdapterMismatch: The shapes are not those of the base's experts.
        UnsupportedAdapter: The shapes fit another packing too, or only that.
    """
    if not packs:
        return {}
    if not isinstance(model_class, MixtureClass):
        raise UnknownAdapterKey(
            f"Adapter {name} changes {next(iter(packs.values())).module!r}; the base has no experts.",
            "The adapter was trained on another base: use that one.",
        )
    sizes = model_class.sizes(source)
    pairs: dict[str, LoraPair] = {}
    for pack in packs.values():
        parameter = _parameter_of(name, pack, sizes)
        for part, place in model_class.expert_rows(parameter, sizes[0], sizes[2]).items():
            tensor = f"{pack.module}.{part}"
            if tensor in pairs:
                raise UnknownAdapterKey(
                    f"Adapter {name} changes {parameter} of {pack.module!r} twice.",
                    "Re-save the adapter with PEFT.",
                )
            expert = ExpertPart(place.expert, sizes[0], place.rows)
            pairs[tensor] = LoraPair(
                tensor.removesuffix(".weight"),
                pack.a,
                pack.b,
                pack.rank,
                pack.scaling,
                rounded=True,
                expert=expert,
            )
    return pairs


def _parameter_of(name: str, pack: ExpertPack, sizes: tuple[int, int, int]) -> str:
    count, hidden, width = sizes
    a, b = pack.a.shape, pack.b.shape
    shapes = {GATE_UP: (hidden, 2 * width), DOWN: (width, hidden)}
    packed = len(a) == len(b) == 2 and a[0] == b[1] == pack.rank * count
    found = (a[1], b[0]) if packed else None
    fitting = [parameter for parameter, shape in shapes.items() if found == shape]
    turned = [parameter for parameter, shape in shapes.items() if found == (shape[1], shape[0])]
    if turned:
        raise UnsupportedAdapter(
            f"Adapter {name}: the pair of all experts of {pack.module!r} has A of shape {list(a)} and B of shape {list(b)}, as older "
            "versions of PEFT pack a parameter whose rows and columns are exchanged"
            + (", and as PEFT 0.21 packs another." if fitting else "."),
            "Merge it with the PEFT version that trained it.",
        )
    if not fitting or fitting[0] not in pack.parameters:
        raise AdapterMismatch(
            f"Adapter {name}: the pair of all experts of {pack.module!r} has A of shape {list(a)} and B of shape {list(b)}; the base has "
            f"{count} experts, hidden size {hidden} and width {width}, the adapter rank {pack.rank} and target_parameters "
            f"{', '.join(sorted(pack.parameters))}.",
            "The adapter was trained on another base: use that one.",
        )
    return fitting[0]
