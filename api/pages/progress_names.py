"""Names of the statuses of jobs, of their stages, and of what is counted in them."""

from collections.abc import Mapping
from typing import Any

from flask_babel import lazy_gettext

STATUSES = {
    "queued": lazy_gettext("Queued"),
    "running": lazy_gettext("Running"),
    "succeeded": lazy_gettext("Succeeded"),
    "failed": lazy_gettext("Failed"),
    "canceled": lazy_gettext("Canceled"),
}
"""Statuses of jobs, in the order of a job's life."""

STAGES = {
    "loading": lazy_gettext("loading"),
    "starting vLLM": lazy_gettext("starting vLLM"),
    "generating": lazy_gettext("generating"),
    "embedding": lazy_gettext("embedding"),
    "tokenizing": lazy_gettext("tokenizing"),
    "scoring": lazy_gettext("scoring"),
    "writing tensors": lazy_gettext("writing tensors"),
    "checking what was downloaded before": lazy_gettext("checking what was downloaded before"),
    "digesting files": lazy_gettext("digesting files"),
    "loading into llama.cpp": lazy_gettext("loading into llama.cpp"),
    "downloading": lazy_gettext("downloading"),
    "uploading": lazy_gettext("uploading"),
    "copying files": lazy_gettext("copying files"),
    "checking the archive": lazy_gettext("checking the archive"),
    "verifying tensors": lazy_gettext("verifying tensors"),
    "verifying files": lazy_gettext("verifying files"),
    "verifying products": lazy_gettext("verifying products"),
    "comparing tensors": lazy_gettext("comparing tensors"),
    "comparing logits": lazy_gettext("comparing logits"),
    "comparing precisions": lazy_gettext("comparing precisions"),
    "measuring changes": lazy_gettext("measuring changes"),
    "computing factors": lazy_gettext("computing factors"),
    "computing importance": lazy_gettext("computing importance"),
    "extending the vocabulary": lazy_gettext("extending the vocabulary"),
    "taking the same model": lazy_gettext("taking the same model"),
    "waiting for memory": lazy_gettext("waiting for memory"),
}
"""Stages of work by the worker's names (a test finds those of the source)."""

UNITS = {
    "files": lazy_gettext("files"),
    "layers": lazy_gettext("layers"),
    "parameters": lazy_gettext("parameters"),
    "pieces": lazy_gettext("pieces"),
    "prompts": lazy_gettext("prompts"),
    "tensors": lazy_gettext("tensors"),
    "texts": lazy_gettext("texts"),
    "tokens": lazy_gettext("tokens"),
}
"""Units of progress other than bytes, by the worker's names."""


def stage_name(stage: str) -> str:
    """Returns the name of a stage in the language of the request; one of a newer worker as it is."""
    return str(STAGES.get(stage, stage))


def unit_name(unit: str) -> str:
    """Returns the name of a unit in the language of the request."""
    return str(UNITS.get(unit, unit))


def names() -> dict[str, Any]:
    """Returns the names for templates: `status_names`, and `stages` and `units` by the worker's names."""
    return {"status_names": _translated(STATUSES), "stages": _translated(STAGES), "units": _translated(UNITS)}


def _translated(texts: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(text) for name, text in texts.items()}
