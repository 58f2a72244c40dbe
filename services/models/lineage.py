"""What a model's origin says about how to talk to it."""

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
"""What stands in a model's or an adapter's name (in whatever letter case), and the template that such were trained
with; the first row that fits counts."""


def template_of_lineage(store: ModelStore, model: str, adapters: Sequence[str] = ()) -> str | None:
    """The prompt template that a model and adapters on the fly were trained with, as far as their names tell.

    Asked are the adapters from the last to the first, then what the model was made of by its manifest, then the
    model's own name. A published adapter goes by its published name, whatever it is called on the shelf.
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
    """The names of what went into a model, the last one first, each before its own ancestors."""
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
    """Whether the shelf still has under this name what went in then."""
    try:
        manifest = read_manifest(store.path(name))
    except GraftwerkError:
        return False
    return manifest is not None and digest in (None, manifest.digest)
