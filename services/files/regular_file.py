"""Files of models, opened without waiting: whoever fills a volume may put a pipe, a device or a loop of links there."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from services.errors import GraftwerkError, UnreadableFile

UNREADABLE = (errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENXIO, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Faults of the file itself, not of the volume: links in a circle, permissions, a socket, a path through a file."""


def open_regular(path: Path, unreadable: type[GraftwerkError] = UnreadableFile) -> BufferedReader:
    """Opens a regular file for reading.

    Args:
        unreadable: Class of the error.

    Raises:
        UnreadableFile: It is a pipe, a device or a folder, or cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise unreadable(
            f"{path.name} cannot be opened ({error.strerror}).", "Put the file itself there, readable by all."
        ) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")  # noqa: PTH123  # pathlib opens no descriptors
    os.close(descriptor)
    raise unreadable(
        f"{path.name} is a folder, a pipe or a device; a regular file is needed.",
        "Put the file itself there.",
    )


def read_regular(
    path: Path,
    limit_bytes: int,
    unreadable: type[GraftwerkError] = UnreadableFile,
    hint: str = "Fetch the file again.",
) -> bytes:
    """Returns the content of a regular file.

    Args:
        limit_bytes: Largest size that is read.
        unreadable: Class of the error.
        hint: Advice for a file that is too large.

    Raises:
        UnreadableFile: It is larger, or not a regular file.
    """
    with open_regular(path, unreadable) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > limit_bytes:
            raise unreadable(f"{path.name} has {size_bytes} bytes; at most {limit_bytes} are read.", hint)
        return file.read(size_bytes)  # a larger number would be allocated at once
