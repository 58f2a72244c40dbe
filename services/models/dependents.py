"""Models that need another one: those made from it, and adapters whose recorded base it is."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.kinds.model_summary import ModelKind, ModelSummary
from services.models.known_artifacts import KNOWN_ADAPTERS

BASE_OF_KNOWN = {known.name: known.base for known in KNOWN_ADAPTERS.values()}


class MadeFrom(BaseModel):
    """A model that was made from another one."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: ModelKind
    operation: str = Field(description="The kind of job that made it.", examples=["merge"])
    roles: list[str] = Field(
        description="What the other model was in it: `base`, `adapter`, `source`, for example."
    )


def made_from(model: ModelSummary, others: Iterable[ModelSummary]) -> Iterator[MadeFrom]:
    """Yields the models that were made from this one, by the lineage in their manifests."""
    for other in others:
        lineage = other.lineage or {}
        roles = [entry["role"] for entry in lineage.get("inputs", []) if _is_input(entry, model)]
        if roles and other.name != model.name:
            yield MadeFrom(name=other.name, kind=other.kind, operation=lineage["operation"], roles=roles)


def adapters_of(model: ModelSummary, others: Iterable[ModelSummary]) -> Iterator[str]:
    """Yields the names of the adapters whose recorded base is this model: by lineage, the Hub, the configuration or their digest."""
    if model.kind == "adapter":
        return
    for other in others:
        if other.kind == "adapter" and _is_base(model, other):
            yield other.name


class AdaptersByBase:
    """Adapters of many models: only those that name a model are compared with it."""

    def __init__(self, adapters: Iterable[ModelSummary]) -> None:
        self._named = defaultdict[str, list[ModelSummary]](list)
        for adapter in adapters:
            for name in _base_names(adapter):
                self._named[name].append(adapter)

    def of(self, model: ModelSummary) -> list[str]:
        """Returns the names of the adapters whose recorded base is this model, as `adapters_of`, by name."""
        names = {model.name.lower(), (model.known_as or "").lower()}
        found = {adapter.name: adapter for name in names for adapter in self._named[name]}
        return sorted(adapters_of(model, found.values()))


def _base_names(adapter: ModelSummary) -> set[str]:
    """Returns the names that `_is_base` compares with those of a model, in lower case."""
    recorded = adapter.adapter or {}
    named = recorded.get("base_model_name_or_path")
    return {
        name.lower()
        for name in (
            *(
                entry["name"]
                for entry in (adapter.lineage or {}).get("inputs", [])
                if entry["role"] == "base"
            ),
            (recorded.get("base") or {}).get("model"),
            PurePath(named).name if isinstance(named, str) else None,
            BASE_OF_KNOWN.get(adapter.known_as or ""),
        )
        if name
    }


def _is_input(entry: dict[str, Any], model: ModelSummary) -> bool:
    """Returns True if an input was this model, and not an earlier one of the same name."""
    is_other = entry["role"] in ("base", "source") and None not in (entry["digest"], model.digest)
    return entry["name"] == model.name and not (is_other and entry["digest"] != model.digest)


def _is_base(model: ModelSummary, adapter: ModelSummary) -> bool:
    recorded = adapter.adapter or {}
    inputs = (adapter.lineage or {}).get("inputs", [])
    if any(entry["role"] == "base" and _is_input(entry, model) for entry in inputs):
        return True
    if (recorded.get("base") or {}).get("model") == model.name:
        return True
    named = recorded.get("base_model_name_or_path")
    if isinstance(named, str) and PurePath(named).name.lower() == model.name.lower():
        return True
    return model.known_as is not None and BASE_OF_KNOWN.get(adapter.known_as or "") == model.known_as
