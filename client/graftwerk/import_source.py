"""Source of an import, from the argument of the command."""

from collections.abc import Sequence

from graftwerk.errors import UsageError
from graftwerk.models import JsonObject
from graftwerk.options import given

HUB = "hub:"
SUFFIXES = (".zip", ".gguf", ".model", ".safetensors", ".pth", ".bin")
"""Suffixes of files; a dot in the name of a folder is part of it, as in `Qwen2.5-0.5B`."""


def parse_source(text: str, *, files: Sequence[str] = (), is_zip: bool = False) -> JsonObject:
    """Returns the source of a request, from `hub:org/name@revision` or a path under `incoming/`.

    Args:
        files: shell patterns of the files to take from the Hub.
        is_zip: the path is a zip archive, regardless of its name.

    Raises:
        UsageError: patterns are given for a source that is not on the Hub.
    """
    if text.startswith(HUB):
        repository, _, revision = text.removeprefix(HUB).partition("@")
        return given(hub=repository, revision=revision or None, files=list(files))
    if files:
        raise UsageError(
            f"--files chooses files of the Hub, and {text} is not there.",
            "Write hub:org/name, or leave --files out.",
        )
    return {"zip" if is_zip or text.lower().endswith(".zip") else "path": text}


def default_target(text: str) -> str:
    """Returns the name of the model if none is given: the source's last name, without the suffix of a file."""
    if text.startswith(HUB):
        return text.partition("@")[0].rpartition("/")[2]
    name = text.rstrip("/").rpartition("/")[2]
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name.removesuffix(name[len(name) - len(suffix) :])
