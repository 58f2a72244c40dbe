"""Origin of a GGUF model, as its file states it: name, licence, and the models that it was made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KEYS = (
    "name", "author", "organization", "version", "basename", "finetune", "size_label", "license", "license.name", "license.link",
    "url", "repo_url", "source.url", "source.repo_url", "source.huggingface.repository", "quantized_by",
)  # fmt: skip
"""Keys below `general.` (ggml `docs/gguf.md`)."""

BASE_KEYS = ("name", "author", "version", "organization", "url", "repo_url", "doi")
"""Keys below `general.base_model.<number>.`."""

BASES_LIMIT = 100
TEXT_LIMIT = 2000
"""Longest text that is recorded, in characters."""


@dataclass(frozen=True, slots=True)
class GgufOrigin:
    """Origin that a written file states.

    Attributes:
        texts: By `KEYS`.
        bases: For each base model, by `BASE_KEYS`.
    """

    texts: Mapping[str, str]
    bases: Sequence[Mapping[str, str]] = ()


def gguf_origin(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the texts below `general.` that say where a model comes from, and those of its base models in `base_models`."""
    count = metadata.get("general.base_model.count")
    numbers = range(min(count, BASES_LIMIT)) if isinstance(count, int) else range(0)
    bases = [_texts(metadata, f"general.base_model.{number}.", BASE_KEYS) for number in numbers]
    origin: dict[str, Any] = _texts(metadata, "general.", KEYS)
    return origin | ({"base_models": [base for base in bases if base]} if any(bases) else {})


def _texts(metadata: Mapping[str, Any], prefix: str, keys: tuple[str, ...]) -> dict[str, Any]:
    found = {key: metadata.get(prefix + key) for key in keys}
    return {key: text[:TEXT_LIMIT] for key, text in found.items() if isinstance(text, str) and text}
