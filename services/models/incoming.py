"""Files that people have put into `incoming/`, as an import may take them: folders, archives and single files.

A folder that is recognized as a model is one entry; any other is followed by its contents. Links are not followed.
"""

import os
import stat
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from services.adapters.adapter import CONFIG_FILE, WEIGHT_FILES
from services.architectures.original_layout import RANK_FILE
from services.errors import GraftwerkError
from services.kinds.model_summary import ModelKind
from services.models.imports import is_junk, list_archive

INCOMING = "incoming"

FILES_LIMIT = 20_000
"""Most files and folders that are looked at."""

DEPTH_LIMIT = 8
"""Most folders above a file that is looked at."""

ENTRIES_LIMIT = 1000
ARCHIVES_SECONDS = 3
"""Processor time after which no further archive is read; an archive of a model takes a millisecond."""

KIND_OF_SUFFIX: Mapping[str, ModelKind] = {".gguf": "gguf", ".model": "tokenizer"}


class IncomingEntry(BaseModel):
    """A folder, an archive or a file below `incoming/`; `problem` says why an import would refuse it."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(examples=["incoming/llama"])
    kind: Literal["file", "folder", "zip"]
    size_bytes: int = Field(description="Of a folder, the size of all its files.")
    modified_at: datetime = Field(description="Of a folder, the time of its newest file.")
    looks_like: ModelKind = Field(
        description="Kind of model, by the names of the files; `unknown` also for archives that were not read for lack of time."
    )
    problem: str | None = None


class IncomingList(BaseModel):
    """Entries in the order of their paths."""

    entries: list[IncomingEntry]
    truncated: bool = Field(description="There is more than the limits of the list allow.")


@dataclass(frozen=True, slots=True)
class _File:
    path: PurePosixPath
    size_bytes: int
    modified: float


def list_incoming(root: Path, *, unpack_limit_bytes: int) -> IncomingList:
    """Returns the entries below `incoming/` of a volume; none if there is no such folder.

    Args:
        root: the volume.
        unpack_limit_bytes: size that an archive may unpack to.
    """
    walk = _Walk(root / INCOMING)
    listing = _Listing(root / INCOMING, list(walk.files(PurePosixPath())), unpack_limit_bytes)
    entries = list(islice(listing.entries(PurePosixPath()), ENTRIES_LIMIT + 1))
    is_truncated = not walk.is_complete or len(entries) > ENTRIES_LIMIT
    return IncomingList(entries=entries[:ENTRIES_LIMIT], truncated=is_truncated)


class _Walk:
    """Walk through a folder within the limits; `is_complete` is False once something was left out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._left = FILES_LIMIT
        self.is_complete = True

    def files(self, folder: PurePosixPath) -> Iterator[_File]:
        """Yields the regular files below a folder."""
        for entry in self._entries(folder):
            path = folder / entry.name
            if is_junk(path):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from self.files(path)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:  # deleted at this moment
                continue
            if stat.S_ISREG(status.st_mode):
                yield _File(path, status.st_size, status.st_mtime)

    def _entries(self, folder: PurePosixPath) -> list[os.DirEntry[str]]:
        if len(folder.parts) > DEPTH_LIMIT:
            self.is_complete = False
            return []
        try:
            with os.scandir(self._root / folder) as found:
                entries = list(islice(found, self._left + 1))
        except OSError:  # it is not there, or was deleted at this moment
            return []
        if len(entries) > self._left:
            self.is_complete = False
            entries.pop()
        self._left -= len(entries)
        return entries


class _Listing:
    """Entries of the files below one folder."""

    def __init__(self, incoming: Path, files: list[_File], unpack_limit_bytes: int) -> None:
        self._incoming = incoming
        self._unpack_limit_bytes = unpack_limit_bytes
        self._began = time.process_time()
        self._files = {file.path: file for file in files}
        self._below: dict[PurePosixPath, list[_File]] = defaultdict(list)
        for file in files:
            for folder in file.path.parents:
                self._below[folder].append(file)

    def entries(self, folder: PurePosixPath) -> Iterator[IncomingEntry]:
        """Yields the entries of a folder that was not recognized as a model."""
        for name in sorted({file.path.relative_to(folder).parts[0] for file in self._below[folder]}):
            path = folder / name
            if path in self._below:
                entry = self._folder(path)
                yield entry
                if entry.looks_like in ("unknown", "tokenizer"):
                    yield from self.entries(path)
            else:
                yield self._file(self._files[path])

    def _folder(self, path: PurePosixPath) -> IncomingEntry:
        files = self._below[path]
        return _entry(
            path, "folder", sum(file.size_bytes for file in files), max(file.modified for file in files),
            kind_of_names([str(file.path.relative_to(path)) for file in files]),
        )  # fmt: skip

    def _file(self, file: _File) -> IncomingEntry:
        if file.path.suffix != ".zip":
            kind = KIND_OF_SUFFIX.get(file.path.suffix, "unknown")
            return _entry(file.path, "file", file.size_bytes, file.modified, kind)
        kind, problem = self._archive(file)
        found = _entry(file.path, "zip", file.size_bytes, file.modified, kind)
        return found if problem is None else found.model_copy(update={"problem": problem})

    def _archive(self, file: _File) -> tuple[ModelKind, str | None]:
        if time.process_time() - self._began > ARCHIVES_SECONDS:
            return "unknown", None
        try:
            members = list_archive(self._incoming / file.path, limit_bytes=self._unpack_limit_bytes)
        except GraftwerkError as error:
            return "unknown", f"{error.message} {error.hint}".strip()
        except OSError as error:
            return "unknown", f"{file.path.name} cannot be read: {error.strerror}."
        return kind_of_names([str(member.path) for member in members]), None


def _entry(
    path: PurePosixPath,
    kind: Literal["file", "folder", "zip"],
    size_bytes: int,
    modified: float,
    looks_like: ModelKind,
) -> IncomingEntry:
    raw = os.fsencode(f"{INCOMING}/{path}")
    shown = raw.decode("utf-8", "backslashreplace")
    is_named_wrong = shown.encode() != raw
    return IncomingEntry(
        path=shown, kind=kind, size_bytes=size_bytes, modified_at=datetime.fromtimestamp(modified, UTC),
        looks_like=looks_like, problem="The name is not valid UTF-8. Rename it." if is_named_wrong else None,
    )  # fmt: skip


def kind_of_names(paths: Collection[str]) -> ModelKind:
    """Returns the kind of model that files with these paths are, as `kind_of_folder` does with a folder."""
    top = {path for path in paths if "/" not in path}
    if top & {CONFIG_FILE, *WEIGHT_FILES}:
        return "adapter"
    split = [path.rpartition("/") for path in paths]
    with_ranks = {folder for folder, _, name in split if "/" not in folder and RANK_FILE.fullmatch(name)}
    if "" in with_ranks:
        return "original"
    if "config.json" in top:
        return "huggingface"
    if with_ranks:
        return "original" if len(with_ranks) == 1 else "unknown"
    if any(path.endswith(".gguf") for path in top):
        return "gguf"
    is_tokenizer = "tokenizer.json" in top or any(path.endswith(".model") for path in top)
    return "tokenizer" if is_tokenizer else "unknown"
