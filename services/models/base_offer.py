"""The base of an adapter: the model on the volume that was imported from the Hub's id in its configuration."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from services.errors import GraftwerkError
from services.kinds.import_ import PART
from services.kinds.model_summary import ModelSummary
from services.models.manifest import MANIFEST_NAME, read_manifest

HUB_ID = re.compile(f"{PART}/{PART}")
COMMIT_KEY = b'"commit":'
"""Part of every manifest of an import from the Hub; others, which may have megabytes, are not parsed."""


class BaseOffer:
    """Bases of adapters among the models in some folders; their manifests are read once, and only if an adapter asks."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = folders

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
        return {hub_id.lower(): folder.name for folder in self._folders for hub_id in _hub_ids(folder)}


def _hub_ids(folder: Path) -> list[str]:
    try:
        if COMMIT_KEY not in (folder / MANIFEST_NAME).read_bytes():
            return []
        manifest = read_manifest(folder)
    except (OSError, GraftwerkError):  # no manifest, or a damaged one, which the model's own summary reports
        return []
    return [entry.name.partition("@")[0] for entry in (manifest.inputs if manifest else []) if entry.commit]
