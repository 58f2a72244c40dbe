"""Metadata of a model card: the YAML at the beginning of a folder's README.md."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import metadata_load

CARD_NAME = "README.md"
CARD_LIMIT_BYTES = 2**20
"""Largest model card that is read."""


def front_matter(folder: Path) -> Mapping[str, object]:
    """Returns the metadata of a folder's model card, empty if it has none that can be read."""
    path = folder / CARD_NAME
    if not path.is_file() or path.stat().st_size > CARD_LIMIT_BYTES:
        return {}
    try:
        return metadata_load(path) or {}
    except (ValueError, RecursionError, yaml.YAMLError):  # a card is for people: no work depends on it
        return {}
