"""The base of an adapter: the model on the volume that was imported from the Hub's id in its configuration."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from services.errors import GraftwerkError
from services.files.json_file import JSON_LIMIT_BYTES
from services.files.regular_file import read_regular
from services.kinds.import_ import PART
from services.kinds.model_summary import ModelSummary
from services.models.manifest import MANIFEST_NAME, read_manifest

HUB_ID = re.compile(f"{PART}/{PART}")
HubId = tuple[str, str]
"""Id of a repository on the Hub, and the name of the model that was imported from it."""

COMMIT_KEY = b'"commit":'
"""Part of every manifest of an import from the Hub; others, which may have megabytes, are not parsed."""


class BaseOffer:
    """Bases of adapters among models that were imported from the Hub; these are listed once, and only if an adapter asks."""

    def __init__(self, imported: Callable[[], Iterable[HubId]]) -> None:
        self._list = imported

    def complete(self, summary: ModelSummary) -> ModelSummary:
        """Returns an adapter's summary with the field `base`; any other model's as it is."""
        named = (summary.adapter or {}).get("base_model_name_or_path")
        if not isinstance(named, str) or not HUB_ID.fullmatch(named):
            return summary
        return summary.model_copy(update={"adapter": {**(summary.adapter or {}), "base": self._offer(named)}})

    def _offer(self, hub_id: str) -> dict[str, Any]:
        model = self._imported.get(hub_id.lower())
        hint = None if model else f"graftwerk import hub:{hub_id}"
        return {"hub": hub_id, "model": model, "hint": hint}

    @cached_property
    def _imported(self) -> Mapping[str, str]:
        """Names of models by the id on the Hub from which they were imported, in lower case."""
        return {hub_id.lower(): name for hub_id, name in self._list()}


def hub_ids(summaries: Iterable[ModelSummary]) -> Iterator[HubId]:
    """Yields the ids on the Hub from which models were imported, by their summaries."""
    for summary in summaries:
        for entry in (summary.lineage or {}).get("inputs", []):
            if entry.get("commit"):
                yield entry["name"].partition("@")[0], summary.name


def hub_ids_of_folders(folders: Iterable[Path]) -> Iterator[HubId]:
    """Yields the ids on the Hub from which models were imported, by their manifests."""
    for folder in folders:
        try:
            if COMMIT_KEY not in read_regular(folder / MANIFEST_NAME, JSON_LIMIT_BYTES):
                continue
            manifest = read_manifest(folder)
        except (
            OSError,
            GraftwerkError,
        ):  # no manifest, or a damaged one, which the model's own summary reports
            continue
        for entry in manifest.inputs if manifest else []:
            if entry.commit:
                yield entry.name.partition("@")[0], folder.name
