"""Source of an import, from the argument of the command."""

from collections.abc import Sequence

from graftwerk.errors import UsageError
from graftwerk.local_files import default_name
from graftwerk.options import given
from graftwerk.request_parts import JsonObject

HUB = "hub:"
VOLUME = "incoming/"
"""Beginnings of sources that the service reaches itself; anything else is a local path."""


def is_local(text: str) -> bool:
    """Returns True for a path on this machine."""
    return not text.startswith((HUB, VOLUME))


def parse_source(text: str, *, files: Sequence[str] = (), is_zip: bool = False) -> JsonObject:
    """Returns the source of a request, from `hub:org/name@revision` or a path under `incoming/`.

    Args:
        files: shell patterns of the files to take from the Hub.
        is_zip: the path is a zip archive, regardless of its name.

    Raises:
        UsageError: the id of the Hub is not of two parts, or patterns are given for a source that is not on the Hub.
    """
    if text.startswith(HUB):
        repository, _, revision = text.removeprefix(HUB).partition("@")
        organization, _, name = repository.partition("/")
        if not organization or not name or "/" in name:
            raise UsageError(
                f"{text} does not name a repository of the Hub.",
                "Write hub:org/name or hub:org/name@revision.",
            )
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
    return default_name(text)
