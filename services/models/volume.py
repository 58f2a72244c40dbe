"""Presence of the model volume: a folder that has lost its mount is told from an empty volume.

A process notes the volume when it uses it first. Later its folder must be the same one, or hold the same marker: a volume that
is mounted again may be another folder to the kernel.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from services.errors import VolumeUnavailable
from services.files.disk_full import is_disk_full

MARKER = ".graftwerk"
"""File on the volume with an id, which the processes of a service write when they start."""

PROBE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Noted:
    """Volume as it was found: the folder for the kernel, and its marker, None without one.

    `is_new` is True if this process has written the marker: the mount may have been missing when it started.
    """

    folder: tuple[int, int]
    marker: bytes | None
    is_new: bool = False

    def accepts(self, found: "Noted") -> bool:
        """Returns True if what is found now is this volume, or one that replaces a new one."""
        if found.folder == self.folder:
            return True
        return found.marker is not None and (self.is_new or found.marker == self.marker)


_NOTED: dict[Path, Noted] = {}
"""Volumes that this process has used."""


class Volume:
    """The folder of a model volume."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def mark(self) -> None:
        """Writes the marker unless the volume has one; a volume that cannot be written stays without."""
        with suppress(OSError):
            self.root.mkdir(parents=True, exist_ok=True)
            temporary = self.root / f"{MARKER}-{uuid.uuid4().hex}"
            temporary.write_text(f"{uuid.uuid4()}\n", encoding="ascii")
            with suppress(FileExistsError):
                os.link(temporary, self.root / MARKER)
                _NOTED[self.root] = replace(self._find(), is_new=True)
            temporary.unlink()

    def require(self) -> None:
        """Checks that the volume is the one that this process has used before; the first use creates its folder.

        Raises:
            VolumeUnavailable: it is another folder, without the marker.
        """
        with self.accessible("read"):
            noted = _NOTED.get(self.root)
            if noted is None:
                self.root.mkdir(parents=True, exist_ok=True)
            found = self._find()
            if noted is None or (noted.accepts(found) and found.folder != noted.folder):
                _NOTED[self.root] = found
            elif not noted.accepts(found):
                raise VolumeUnavailable(
                    "The model volume is not mounted: its folder is another one than before, without the volume's "
                    f"marker {MARKER}.",
                    "Mount the volume. If another one is to be used from now on, restart the service.",
                )

    def require_writable(self, *, full: bool = False) -> None:
        """Checks that the volume is there and can be written; if `full`, a full one is accepted.

        Raises:
            VolumeUnavailable: it cannot; the message gives the reason.
        """
        self.require()
        probe = self.root / f".probe-{uuid.uuid4().hex}"
        with self.accessible("written"):
            try:
                probe.write_bytes(bytes(PROBE_BYTES))
            except OSError as error:
                if not (full and is_disk_full(error)):
                    raise
            finally:
                probe.unlink(missing_ok=True)

    @contextmanager
    def accessible(self, action: str) -> Iterator[None]:
        """Raises VolumeUnavailable for an error of the operating system in the block."""
        try:
            yield
        except OSError as error:
            raise VolumeUnavailable(
                f"The model volume cannot be {action}: {error.strerror}.",
                "Delete models, or enlarge the volume."
                if is_disk_full(error)
                else "Check the mount and its owner.",
            ) from error

    def _find(self) -> Noted:
        status = self.root.stat()
        try:
            marker = (self.root / MARKER).read_bytes()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EACCES):
                raise
            marker = None
        return Noted((status.st_dev, status.st_ino), marker)
