"""What a writer has finished so far, a line a tensor: a piece of work that was killed goes on from there.

The journal lies beside the folder that is written, not in it. Its first line says what is made of which inputs; another one's
work is never continued. A line is only believed once the tensor's bytes on the disk have the digest that it says.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def work_identity(*facts: object) -> str:
    """One digest of all that the bytes of an output depend on, the version of torch included.

    Args:
        facts: values whose `repr` tells them apart: options, planned tensors, the `stamps` of the inputs' files.
    """
    return hashlib.sha256(repr((version("torch"), facts)).encode()).hexdigest()


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size in bytes and time of change in nanoseconds of each file, once and in order."""
    files = [(path.name, path.stat()) for path in sorted(set(paths))]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]


class Journal:
    """The finished tensors of one folder, in the order in which they were written. Without a path it remembers nothing."""

    def __init__(
        self, path: Path | None = None, entries: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """`entries` are those of an earlier try, by the tensor's name."""
        self._path = path
        self.entries = dict(entries or {})

    def record(self, name: str, **entry: Any) -> None:
        """Append a finished tensor. Not forced to the disk: what a crash of the machine loses is written again."""
        self.entries[name] = entry
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(name, entry))

    def forget(self, names: Iterable[str]) -> None:
        """Take back what an earlier try noted and what turned out not to be so."""
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
    """The journal of what is written into `folder`; empties the folder where it is not continued.

    Args:
        path: where it lies, None for none.
        identity: what is made, by `work_identity`.
    """
    if path is None:
        return Journal()
    entries = _read(path, identity) if path.is_file() else None
    if entries is not None:
        return Journal(path, entries)
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    path.write_text(f"{identity}\n", encoding="utf-8")
    return Journal(path)


def _read(path: Path, identity: str) -> dict[str, dict[str, Any]] | None:
    """The entries of a journal, None where it is of another work or damaged; a torn last line is cut off."""
    first, *lines = path.read_bytes().split(b"\n")
    whole = lines[:-1]  # what follows the last newline
    if first != identity.encode() or not lines:
        return None
    try:
        found = [json.loads(line) for line in whole]
    except ValueError:  # the machine went down, and not all of the file had reached the disk
        return None
    path.write_bytes(b"".join(line + b"\n" for line in [first, *whole]))
    return {entry.pop("name"): entry for entry in found}
