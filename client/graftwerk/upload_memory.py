"""Memory of unfinished uploads on this machine, by which `push` continues after a restart."""

import json
import os
import time
from pathlib import Path
from typing import TypedDict

from graftwerk.local_files import LocalFile

KEPT_SECONDS = 7 * 86400
"""Age at which an entry is forgotten; the service has removed its upload long before."""


class Entry(TypedDict):
    """An upload: its path at the service, the digest of its file, and the time when it was begun."""

    path: str
    sha256: str
    begun_at: float


class UploadMemory:
    """Entries of one service in a file, by the file that is uploaded; a damaged file counts as an empty one.

    Args:
        url: address of the service.
        file: place of the memory; by default in the user's folder for caches.
    """

    def __init__(self, url: str, file: Path | None = None) -> None:
        self._url = url
        self._file = file or _cache_folder() / "uploads.json"

    def get(self, file: LocalFile) -> Entry | None:
        """Returns the upload of a file that has not changed since."""
        return self._read().get(self._key(file))

    def put(self, file: LocalFile, path: str, sha256: str) -> None:
        """Remembers the upload of a file."""
        entry: Entry = {"path": path, "sha256": sha256, "begun_at": time.time()}
        self._write(self._read() | {self._key(file): entry})

    def forget(self, file: LocalFile) -> None:
        """Forgets the upload of a file, if there is one."""
        entries = self._read()
        if entries.pop(self._key(file), None) is not None:
            self._write(entries)

    def _key(self, file: LocalFile) -> str:
        return f"{self._url} {file.path.resolve()} {file.filename} {file.size_bytes} {file.modified_ns}"

    def _read(self) -> dict[str, Entry]:
        try:
            entries: dict[str, Entry] = json.loads(self._file.read_text(encoding="utf-8"))
            oldest = time.time() - KEPT_SECONDS
            return {key: entry for key, entry in entries.items() if entry["begun_at"] > oldest}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _write(self, entries: dict[str, Entry]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            part = self._file.with_name(f"{self._file.name}.{os.getpid()}")
            part.write_text(json.dumps(entries), encoding="utf-8")
            part.replace(self._file)
        except OSError:
            return  # without a memory an upload begins again after a restart


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graftwerk"
