"""Local files that become a model: those of a folder, or a single file."""

import re
from dataclasses import dataclass
from pathlib import Path

from graftwerk.errors import UsageError

JUNK = ("__MACOSX", ".DS_Store", "Thumbs.db", ".git", ".cache")
"""Names of operating systems and version control, as the service leaves them out too."""

SUFFIXES = (".zip", ".gguf", ".safetensors", ".bin", ".pth", ".pt", ".model", ".json")
"""Suffixes that the default name of a model leaves out; `llama-3.1` has none."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to upload: its place on this machine, its path in the model, and its state when it was listed."""

    path: Path
    filename: str
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path, filename: str) -> "LocalFile":
        """Returns a file in its present state."""
        status = path.stat()
        return cls(path, filename, status.st_size, status.st_mtime_ns)


def list_local(source: Path) -> list[LocalFile]:
    """Returns the files of a folder, by path, or a single file.

    Raises:
        UsageError: there is nothing, or nothing that can be uploaded.
    """
    try:
        if source.is_dir():
            found = [LocalFile.of(path, path.relative_to(source).as_posix()) for path in _files_of(source)]
        else:
            found = [LocalFile.of(source, source.name)]
    except OSError as error:
        raise UsageError(f"{source} cannot be read: {error.strerror}.") from error
    if not found:
        raise UsageError(
            f"The folder {source} has no files.", "Name the folder that holds the model's files."
        )
    return found


def _files_of(folder: Path) -> list[Path]:
    paths = (path for path in sorted(folder.rglob("*")) if not _is_junk(path.relative_to(folder)))
    return [path for path in paths if path.is_file()]


def _is_junk(path: Path) -> bool:
    return any(part in JUNK or part.startswith("._") for part in path.parts)


def default_name(source: str) -> str:
    """Returns the name of the model that a source makes: its last part, without the suffix of a file.

    Raises:
        UsageError: no model can have that name.
    """
    last = source.rstrip("/").rpartition("/")[2]
    if last in ("", ".", ".."):
        last = Path(source).resolve().name
    suffix = next((suffix for suffix in SUFFIXES if last.lower().endswith(suffix)), "")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", last[: len(last) - len(suffix)]).strip("-._")[:96]
    if not name:
        raise UsageError(f"{source!r} gives no name for the model.", "Name it with --name or --target.")
    return name


def part_of(file: Path) -> Path:
    """Returns the place of a file until it is complete, in the same folder."""
    return file.with_name(f"{file.name}.part")
