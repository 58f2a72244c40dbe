"""Journal of the tensors that a writer has finished, one line per tensor, by which a killed run is resumed.

The journal is next to the folder that is written, not in it. Its first line is the identity of the work; other work is never
continued. A line counts only if the tensor's bytes on the disk have its digest.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def work_identity(*facts: object) -> str:
    """Returns one digest of everything that the bytes of an output depend on, including the version of torch.

    Args:
        facts: Values that are identified by their `repr`: options, planned tensors, the `stamps` of the inputs' files. The
            `repr` must stay the same over versions, or the work of killed runs is not resumed after an upgrade.
    """
    return hashlib.sha256(repr((version("torch"), facts)).encode()).hexdigest()


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Returns name, size in bytes and time of change in nanoseconds of each file, once and in order."""
    files = [(path.name, path.stat()) for path in sorted(set(paths))]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]


class Journal:
    """Finished tensors of one folder, in the order in which they were written. Without a path nothing is stored."""

    def __init__(
        self, path: Path | None = None, entries: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """`entries` are those of a killed run, by the tensor's name."""
        self._path = path
        self.entries = dict(entries or {})

    def record(self, name: str, **entry: Any) -> None:
        """Appends a finished tensor. Not forced to the disk: entries that a crash of the machine loses are written again."""
        self.entries[name] = entry
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(name, entry))

    def forget(self, names: Iterable[str]) -> None:
        """Removes entries of a killed run that turned out to be wrong."""
        for name in names:
            del self.entries[name]
        if self._path is None:
            return
        with self._path.open(encoding="utf-8") as file:
            identity = file.readline()
        text = identity + "".join(_line(name, entry) for name, entry in self.entries.items())
        self._path.write_text(text, encoding="utf-8")


def _line(name: str, entry: Mapping[str, Any]) -> str:
    return json.dumps({"name": name, **entry}) + "\n"


def open_journal(path: Path | None, identity: str, folder: Path) -> Journal:
    """Returns the journal of a folder; empties the folder unless the journal is that of the same work.

    Args:
        path: Path of the journal; None keeps none.
        identity: Identity of the work, by `work_identity`.
    """
    if path is None:
        return Journal()
    entries = _read(path, identity) if path.is_file() else None
    if entries is not None:
        return Journal(path, entries)
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    path.write_text(f"{identity}\n", encoding="utf-8")
    return Journal(path)


def _read(path: Path, identity: str) -> dict[str, dict[str, Any]] | None:
    """Returns the entries of a journal, None if it is of other work or damaged; cuts off an incomplete last line."""
    first, *lines = path.read_bytes().split(b"\n")
    whole = lines[:-1]  # without the part after the last newline
    if first != identity.encode() or not lines:
        return None
    try:
        found = [json.loads(line) for line in whole]
    except ValueError:  # the machine crashed, and not all of the file had reached the disk
        return None
    path.write_bytes(b"".join(line + b"\n" for line in [first, *whole]))
    return {entry.pop("name"): entry for entry in found}
