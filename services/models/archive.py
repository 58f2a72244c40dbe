"""A model as one tar archive that is never stored: its length and every part of it are known from its files' sizes.

The layout is deterministic (POSIX.1-2001, pax): files by path, fixed owner, mode and time, two empty blocks at the end. The
same files therefore always make the same archive, and a download can continue at any byte.
"""

import bisect
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MODIFIED = 315_532_800
"""Time of every file in the archive, 1980-01-01: `tar` warns of earlier ones."""

END = bytes(2 * tarfile.BLOCKSIZE)
"""End of an archive."""


@dataclass(frozen=True, slots=True)
class FileVersion:
    """Identity of a file's content without reading it."""

    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileVersion":
        """Returns the version that a file has at the moment."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """One file: its header, then its content, then zeros up to a multiple of 512 bytes."""

    path: Path
    version: FileVersion
    header: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all three."""
        return len(self.header) + self.version.size_bytes + self._padding_bytes

    @property
    def _padding_bytes(self) -> int:
        return -self.version.size_bytes % tarfile.BLOCKSIZE

    def open(self) -> BinaryIO:
        """Opens the content.

        Raises:
            OSError: the file is not the one that the archive was laid out for.
        """
        file = self.path.open("rb", buffering=0)
        if FileVersion.of(os.fstat(file.fileno())) == self.version:
            return file
        file.close()
        raise OSError(f"{self.path.name} changed while its model was downloaded")


class Archive(io.RawIOBase):
    """The archive of a folder as a file that can be read from any position; each of its files is opened when it is reached.

    Raises:
        OSError: from reading, if a file has changed or is gone.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """`name`: name of the folder in the archive."""
        super().__init__()
        found = sorted(path for path in folder.rglob("*") if is_inside(path, folder))
        names = [f"{name}/{path.relative_to(folder).as_posix()}" for path in found]
        self._files = [_archived(path, inside) for path, inside in zip(found, names, strict=True)]
        self._starts = list(_starts(self._files))
        self._position = 0
        self._open: tuple[ArchivedFile, BinaryIO] | None = None
        self.size_bytes = self._starts[-1] + len(END)
        versions = [(inside, file.version) for inside, file in zip(names, self._files, strict=True)]
        self.etag = hashlib.sha256(repr(versions).encode()).hexdigest()

    def readable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns True."""
        return True

    def tell(self) -> int:
        """Returns the position."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Sets the position, from the beginning only."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("an archive is only read from a given position")
        self._position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Returns up to `size` bytes from the position, none at the end."""
        index = bisect.bisect_right(self._starts, self._position) - 1
        within = self._position - self._starts[index]
        if index == len(self._files):
            piece = END[within:][: None if size < 0 else size]
        else:
            piece = self._read_file(self._files[index], within, size)
        self._position += len(piece)
        return piece

    def _read_file(self, file: ArchivedFile, within: int, size: int) -> bytes:
        content_end = len(file.header) + file.version.size_bytes
        if within < len(file.header):
            piece = file.header[within:]
        elif within < content_end:
            return self._read_content(file, within - len(file.header), size)
        else:
            piece = bytes(file.size_bytes - within)
        return piece if size < 0 else piece[:size]

    def _read_content(self, file: ArchivedFile, offset: int, size: int) -> bytes:
        if self._open is None or self._open[0] is not file:
            self._close_file()
            self._open = (file, file.open())
        left = file.version.size_bytes - offset
        content = self._open[1]
        content.seek(offset)
        piece = content.read(left if size < 0 else min(size, left))
        if not piece:
            raise OSError(f"{file.path.name} shrank by {left} bytes while its model was downloaded")
        if len(piece) == left and FileVersion.of(os.fstat(content.fileno())) != file.version:
            raise OSError(f"{file.path.name} changed while its model was downloaded")
        return piece

    def _close_file(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def close(self) -> None:
        """Closes the file that is open at the moment, if any."""
        self._close_file()
        super().close()


def is_inside(file: Path, folder: Path) -> bool:
    """Returns True for a regular file that is inside the folder after all links are resolved."""
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError, ValueError):  # missing, a loop of links, a NUL in the name
        return False
    return real.is_file() and real.is_relative_to(folder.resolve())


def _archived(path: Path, name: str) -> ArchivedFile:
    version = FileVersion.of(path.stat())
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = version.size_bytes, MODIFIED, 0o644
    return ArchivedFile(path, version, header.tobuf(tarfile.PAX_FORMAT))


def _starts(files: list[ArchivedFile]) -> Iterator[int]:
    start = 0
    for file in files:
        yield start
        start += file.size_bytes
    yield start
