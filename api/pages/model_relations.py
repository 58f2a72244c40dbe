"""Relations between models of the volume: bases of an adapter, the order of known adapters, inputs of a verification."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.pages.lineage_graph import children_by_parent, parents_of
from services.kinds.model_summary import ModelSummary
from services.models.dependents import adapters_of
from services.models.known_artifacts import KNOWN_ADAPTERS, KnownAdapter

BASES_LIMIT = 8
"""Bases of an adapter that are offered."""

BASE_KINDS = ("huggingface", "original")
"""Kinds of models that adapters are merged into, the preferred one first."""


def known_adapter(adapter: ModelSummary) -> KnownAdapter | None:
    """Returns the published adapter that a model is, None for another one."""
    known = (entry for entry in KNOWN_ADAPTERS.values() if entry.name == adapter.known_as)
    return next(known, None) if adapter.known_as else None


def bases_of(adapter: ModelSummary, models: Mapping[str, ModelSummary]) -> Sequence[str]:
    """Returns the names of the models that an adapter belongs to as its record or its digest says.

    A model that was converted from a base is one as well.
    """
    if adapter.adapter is None:
        return ()
    found = [model for model in models.values() if adapter.name in adapters_of(model, [adapter])]
    names = {model.name: model for model in found}
    children = children_by_parent(models) if found else {}
    for model in found:
        names |= {name: models[name] for name in children.get(model.name, []) if _is_converted(models[name])}
    usable = [model for model in names.values() if model.kind in BASE_KINDS and not model.problems]
    usable.sort(key=lambda model: (BASE_KINDS.index(model.kind), model.name.lower()))
    return [model.name for model in usable[:BASES_LIMIT]]


def _is_converted(model: ModelSummary) -> bool:
    return (model.lineage or {}).get("operation") == "convert"


def merge_order(adapter: ModelSummary, models: Mapping[str, ModelSummary]) -> Sequence[str]:
    """Returns an adapter after the published ones that come before it, as far as they are on the volume."""
    order, known = [adapter.name], known_adapter(adapter)
    while known is not None and known.before:
        before = next((model for model in models.values() if model.known_as == known.before), None)
        if before is None or before.name in order:
            break
        order.insert(0, before.name)
        known = known_adapter(before)
    return order


def verification_inputs(model: ModelSummary, models: Mapping[str, ModelSummary]) -> dict[str, Any] | None:
    """Returns `base` and `adapters` of a verify request for a merged model, None if one of them is not on the volume."""
    inputs = parents_of(model)
    is_merge = (model.lineage or {}).get("operation") == "merge"
    if not is_merge or any(entry.name not in models for entry in inputs):
        return None
    bases = [entry.name for entry in inputs if entry.role == "base"]
    adapters = [
        {"name": entry.name, "scale": 1.0 if entry.scale is None else entry.scale}
        for entry in inputs
        if entry.role == "adapter"
    ]
    return {"base": bases[0], "adapters": adapters} if len(bases) == 1 else None
