"""Bearer keys: the file of their digests, which is read again when it has changed.

The file has one line for each key, `sha256 role name`: the SHA-256 of the key in hexadecimal, one of `read`, `submit`
and `admin`, and a display name. Blank lines and lines that begin with `#` are skipped.
"""

import hashlib
import hmac
import re
from pathlib import Path
from typing import NamedTuple

from services.errors import InvalidSettings, NotReady

ROLES = ("read", "submit", "admin")
"""Roles in ascending order; each includes the rights of those before it."""


class Key(NamedTuple):
    """One line of the key file."""

    digest: str
    role: str
    name: str

    def includes(self, role: str) -> bool:
        """Returns True if the key has the rights of a role."""
        return ROLES.index(self.role) >= ROLES.index(role)


class KeyFile:
    """The keys in a file, as the file is now: a line that has been removed counts from the next request on."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            InvalidSettings: the file cannot be read, a line is malformed, or there is no key.
        """
        self._path = path
        self._version = _version_of(path)
        self._keys = _read_keys(path)

    def keys(self) -> list[Key]:
        """Returns the keys.

        Raises:
            NotReady: the file has changed and is not valid any more: no key is accepted until it is.
        """
        try:
            version = _version_of(self._path)
            if version != self._version:
                self._keys = _read_keys(self._path)
                self._version = version
        except InvalidSettings as error:
            raise NotReady(error.message, error.hint) from error
        return self._keys

    def find(self, token: str) -> Key | None:
        """Returns a key's line, None for an unknown key."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
        # all keys are compared in constant time, so that the duration reveals nothing about them
        found = [key for key in self.keys() if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None


def _version_of(path: Path) -> tuple[int, int, int]:
    """Returns what differs after a file was written or replaced."""
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _unreadable(path: Path, error: OSError) -> InvalidSettings:
    return InvalidSettings(f"GRAFTWERK_API_KEYS_FILE {path} cannot be read: {error.strerror}.")


def _read_keys(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise _unreadable(path, error) from error
    keys = [_key(line, number) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    if not keys:
        raise InvalidSettings(
            f"GRAFTWERK_API_KEYS_FILE {path} contains no key.",
            "Write a line `sha256 role name` for each key.",
        )
    return keys


def _key(line: str, number: int) -> Key:
    words = line.split(maxsplit=2)
    if len(words) != 3 or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]) or words[1] not in ROLES:
        raise InvalidSettings(
            f"Line {number} of the key file does not have the form `sha256 role name`.",
            f"The role is one of {', '.join(ROLES)}; make the digest with `printf %s KEY | sha256sum`.",
        )
    return Key(words[0].lower(), words[1], words[2])
