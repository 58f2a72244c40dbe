"""Zip archives that others made, opened within bounds."""

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.files.regular_file import open_regular

READ_LIMIT_BYTES = 10 * 2**20
"""Largest directory, and largest read of a member. The directory of 100,000 storages takes seven megabytes."""

ARCHIVE_FAULTS = (
    zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError, ValueError, OverflowError, IndexError,
)  # fmt: skip
"""Errors that zipfile raises on damaged archives."""


class _BoundedFile(io.BufferedReader):
    """File that refuses to read more at once than the limit: zipfile reads a directory at once, of the size that it announces."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > READ_LIMIT_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size} bytes; at most {READ_LIMIT_BYTES} are read")
        return super().read(size)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Yields the archive in a regular file.

    Raises:
        UnreadableFile: It is not a regular file.
        zipfile.BadZipFile: It is not an archive; further errors are ARCHIVE_FAULTS.
    """
    with _BoundedFile(open_regular(path).detach()) as file, zipfile.ZipFile(file) as archive:
        yield archive
