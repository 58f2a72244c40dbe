"""Presence of the model volume: a folder that has lost its mount is told from an empty volume.

The volume has a marker with an id. A service knows the id of its volume (`Identity`), and a process notes the folder when it uses it first.
Later its folder must be the same one, or hold the same marker: a volume that is mounted again may be another folder to the kernel.
A volume without the marker, or with another one, is taken after an operator has confirmed it with a file on the volume.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.errors import NotReady, QueueFull, VolumeUnavailable
from services.files.disk_full import is_disk_full

MARKER = ".graftwerk"
"""File on the volume with its id, which the first process of a new service writes."""

CONFIRMATION = ".graftwerk-confirmed"
"""File that an operator makes on a volume that is to replace the one that the service knows."""

PROBE_BYTES = 4096


class Identity(Protocol):
    """Knowledge of a service about its volume. Both functions raise NotReady or QueueFull while that cannot be asked."""

    def learn(self, marker: bytes | None) -> bytes | None:
        """Returns the marker of the service's volume; if there is none yet, this one."""

    def replace(self, marker: bytes) -> None:
        """Makes this marker the one of the service's volume."""


@dataclass(frozen=True, slots=True)
class Noted:
    """Volume as it was found: the folder for the kernel, and its marker, None without one."""

    folder: tuple[int, int]
    marker: bytes | None

    def accepts(self, found: "Noted") -> bool:
        """Returns True if what is found now is this volume."""
        return found.folder == self.folder or (found.marker is not None and found.marker == self.marker)


_NOTED: dict[Path, Noted] = {}
"""Volumes that this process has used."""

_IDENTITIES: dict[Path, Identity] = {}
"""Identities of the volumes of this process's service."""


def forget_volumes() -> None:
    """Forgets the volumes that this process has used: another process has checked them."""
    _NOTED.clear()


class Volume:
    """The folder of a model volume."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def identify_by(self, identity: Identity) -> None:
        """Makes this process use the volume only if it is the one that the service knows."""
        _IDENTITIES[self.root] = identity

    def require(self) -> None:
        """Checks that the volume is the right one; the first use creates its folder.

        Raises:
            VolumeUnavailable: it is another folder than before, or not the volume of the service.
        """
        with self.accessible("read"):
            noted = _NOTED.get(self.root)
            if noted is None:
                self.root.mkdir(parents=True, exist_ok=True)
            found = self._find()
            if noted is not None and noted.accepts(found):
                if found.folder != noted.folder:
                    _NOTED[self.root] = found
                return
            identity = _IDENTITIES.get(self.root)
            if identity is not None:
                self._claim(identity, found)
            elif noted is not None:
                raise _not_mounted("its folder is another one than before, without the volume's marker")
            else:
                _NOTED[self.root] = found

    def _claim(self, identity: Identity, found: Noted) -> None:
        """Notes the volume if it is the one that the service knows. While that cannot be asked, it is used and not noted."""
        try:
            known = identity.learn(found.marker)
            is_confirmed = (self.root / CONFIRMATION).exists()
            if found.marker is None and (known is None or is_confirmed):
                found = self._marked()
                known = known if is_confirmed else identity.learn(found.marker)
            if is_confirmed and found.marker is not None:
                identity.replace(found.marker)
                known = found.marker
        except (NotReady, QueueFull):
            return
        if known != found.marker:
            fault = "without the marker" if found.marker is None else "with another marker than that"
            raise _not_mounted(f"its folder is one {fault} of the volume that this service has used")
        _NOTED[self.root] = found
        if is_confirmed:
            with suppress(OSError):
                (self.root / CONFIRMATION).unlink()

    def _marked(self) -> Noted:
        """Writes the marker, unless another process is faster, and returns what is found then; a volume that cannot be written stays without."""
        temporary = self.root / f"{MARKER}-{uuid.uuid4().hex}"
        with suppress(OSError):
            temporary.write_text(f"{uuid.uuid4()}\n", encoding="ascii")
            temporary.chmod(0o644)  # the processes of a service may have different users
            with suppress(FileExistsError):
                os.link(temporary, self.root / MARKER)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        return self._find()

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


def _not_mounted(reason: str) -> VolumeUnavailable:
    return VolumeUnavailable(
        f"The model volume is not mounted: {reason} ({MARKER}).",
        f"Mount the volume. If this one is to be used from now on, make an empty file {CONFIRMATION} in it.",
    )
