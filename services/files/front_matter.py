"""Metadata of a model card: the YAML at the beginning of a folder's README.md."""

from collections.abc import Mapping
from pathlib import Path

import yaml
from huggingface_hub import metadata_load
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from services.errors import GraftwerkError
from services.files.regular_file import read_regular

CARD_NAME = "README.md"
CARD_LIMIT_BYTES = 2**20
"""Largest model card that is read."""

METADATA_LIMIT = 2**16
"""Longest metadata, in characters: a megabyte of YAML takes many seconds."""


def front_matter(folder: Path) -> Mapping[str, object]:
    """Returns the metadata of a folder's model card, empty if it has none that can be read."""
    path = folder / CARD_NAME
    if not path.is_file() or path.stat().st_size > CARD_LIMIT_BYTES:
        return {}
    try:
        if not _is_harmless(read_regular(path, CARD_LIMIT_BYTES).decode()):
            return {}
        return metadata_load(path) or {}
    except (
        GraftwerkError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ):  # a card is for people: no work depends on it
        return {}


def _is_harmless(card: str) -> bool:
    """Returns False for metadata that is very long, or whose mappings are merged into each other: ten lines can become millions."""
    block = REGEX_YAML_BLOCK.search(card)
    metadata = block[2] if block else ""
    return len(metadata) <= METADATA_LIMIT and not ("<<" in metadata and "*" in metadata)
