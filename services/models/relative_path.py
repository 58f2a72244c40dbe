"""Paths that other people chose for files of a model: members of archives and names of uploads."""

from pathlib import PurePosixPath

NAME_LIMIT_BYTES = 255
"""The longest name of a file that Linux accepts."""

PATH_LIMIT_BYTES = 1024
"""The longest path within a model: with the path of a volume it stays far below Linux's limit of 4,096."""


def relative_path(text: str) -> PurePosixPath:
    """Returns a path with Windows' separators as slashes."""
    return PurePosixPath(text.replace("\\", "/"))


def fault_of_path(text: str) -> str | None:
    """Returns the reason why a file of a model cannot have this path, as the end of a sentence; None if it can."""
    path = relative_path(text)
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return "a path that leaves its folder"
    if any(ord(character) < 32 for character in text):
        return "a path with control characters"
    if max(len(part.encode()) for part in path.parts) > NAME_LIMIT_BYTES:
        return f"a name of more than {NAME_LIMIT_BYTES} bytes"
    if len(text.encode()) > PATH_LIMIT_BYTES:
        return f"a path of more than {PATH_LIMIT_BYTES} bytes"
    return None
