"""Lineage of a model: the prompt template that its origin implies."""

import re
from collections.abc import Iterator, Sequence

from services.errors import GraftwerkError
from services.models.known_artifacts import KNOWN_ADAPTERS
from services.models.manifest import read_manifest
from services.models.store import ModelStore

TEMPLATE_OF_NAME: tuple[tuple[str, str], ...] = (
    (r"alpaca[-_ ]?2(?![0-9.])", "alpaca-2"),
    (r"alpaca", "alpaca"),
    (r"vicuna", "vicuna"),
    (r"llama[-_ ]?2.*chat", "llama-2"),
)
"""Patterns of names of models and adapters (ignoring case), and the template that these were trained with; the first match
counts."""


def template_of_lineage(store: ModelStore, model: str, adapters: Sequence[str] = ()) -> str | None:
    """Returns the prompt template that a model and adapters on the fly were trained with, None if no name implies one.

    Names are tried in this order: the adapters from the last to the first, the inputs in the model's manifest, the
    model itself. A published adapter goes by its published name, not by its name on the volume.
    """
    for name in _names(store, model, adapters):
        for pattern, template in TEMPLATE_OF_NAME:
            if re.search(pattern, name, re.IGNORECASE):
                return template
    return None


def _names(store: ModelStore, model: str, adapters: Sequence[str]) -> Iterator[str]:
    for adapter in reversed(adapters):
        yield from _known_names(store, adapter)
        yield adapter
    yield from _ancestors(store, model, set())
    yield model


def _known_names(store: ModelStore, adapter: str) -> Iterator[str]:
    manifest = read_manifest(store.path(adapter))
    digests = manifest.files.values() if manifest else ()
    yield from (KNOWN_ADAPTERS[digest].name for digest in digests if digest in KNOWN_ADAPTERS)


def _ancestors(store: ModelStore, model: str, seen: set[str]) -> Iterator[str]:
    """Yields the names of a model's inputs, the last one first, each before its own ancestors."""
    seen.add(model)
    manifest = read_manifest(store.path(model))
    inputs = manifest.inputs if manifest and manifest.operation in ("convert", "merge") else []
    for entry in reversed(inputs):
        known = KNOWN_ADAPTERS.get(entry.digest or "")
        if known is not None:
            yield known.name
        yield entry.name
        if (
            entry.role in ("base", "source")
            and entry.name not in seen
            and _is_same(store, entry.name, entry.digest)
        ):
            yield from _ancestors(store, entry.name, seen)


def _is_same(store: ModelStore, name: str, digest: str | None) -> bool:
    """Returns True if the volume still has the same model under this name."""
    try:
        manifest = read_manifest(store.path(name))
    except GraftwerkError:
        return False
    return manifest is not None and digest in (None, manifest.digest)
