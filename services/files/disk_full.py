"""Recognition of a full volume among the errors of the operating system."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.errors import DiskFull


def is_disk_full(error: BaseException) -> bool:
    """Returns True for an OSError that means a full volume or an exhausted quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_full_as_error(path: Path, needed_bytes: int) -> Iterator[None]:
    """Raises DiskFull with the numbers in place of an OSError that means a full volume.

    Args:
        path: File or folder that is written.
        needed_bytes: Bytes that were to be written.

    Raises:
        DiskFull: The volume is full or the quota is exhausted.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"The volume has no space for {needed_bytes} more bytes ({path.name}).",
            "Delete models that are not needed, or enlarge the volume; nothing was left behind.",
        ) from error
