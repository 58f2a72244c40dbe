"""Who may ask: bearer keys with roles; without keys, only this machine and no other site's pages.

The key file has a line a key, `sha256 role name` (the SHA-256 of the key in hexadecimal, one of `read`, `submit`,
`admin`, and a name for people). Blank lines and lines that begin with `#` are left out.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from flask import request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from services.errors import InvalidSettings
from services.settings import LOOPBACK_HOSTS, Settings

ROLES = ("read", "submit", "admin")
"""From the least to the most: each may do what those before it may."""

ROLE_OF_METHOD = {"GET": "read", "HEAD": "read", "OPTIONS": "read", "DELETE": "admin"}
"""Any other method changes something, which takes `submit`."""

OPEN_BLUEPRINTS = ("health", "pages", "swagger")
"""Probes, the page, its scripts and the documentation hold no data of anybody's."""


REALM = "Graftwerk API"
"""Its space makes werkzeug quote it, which a realm must be (RFC 9110, 11.5)."""


class Key(NamedTuple):
    """One line of the key file."""

    digest: str
    role: str
    name: str


def read_keys(path: Path) -> list[Key]:
    """The keys of a file.

    Raises:
        InvalidSettings: the file is not there, a line has another form, or no key is in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidSettings(f"GRAFTWERK_API_KEYS_FILE {path} cannot be read: {error.strerror}") from error
    keys = [_key(line, number) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    if not keys:
        raise InvalidSettings(
            f"GRAFTWERK_API_KEYS_FILE {path} holds no key", "Write a line `sha256 role name` for each key."
        )
    return keys


def _key(line: str, number: int) -> Key:
    words = line.split(maxsplit=2)
    if len(words) != 3 or not re.fullmatch(r"[0-9a-fA-F]{64}", words[0]) or words[1] not in ROLES:
        raise InvalidSettings(
            f"line {number} of the key file is not of the form `sha256 role name`",
            f"The role is one of {', '.join(ROLES)}; make the digest with `printf %s KEY | sha256sum`.",
        )
    return Key(words[0].lower(), words[1], words[2])


def guard(settings: Settings) -> Callable[[], None]:
    """The check that runs before each request.

    Raises:
        InvalidSettings: the API would be open to other machines without a key.
    """
    if settings.api_keys_file is not None:
        keys = read_keys(settings.api_keys_file)
        return lambda: _check_key(keys)
    if settings.host not in LOOPBACK_HOSTS and not settings.behind_gateway:
        raise InvalidSettings(
            f"the API would listen on {settings.host}, beyond loopback, without a key",
            "Set GRAFTWERK_API_KEYS_FILE to a file of keys, or GRAFTWERK_HOST to 127.0.0.1.",
        )
    return _check_origin


def _check_key(keys: list[Key]) -> None:
    if request.endpoint is None or request.blueprint in OPEN_BLUEPRINTS or request.endpoint == "static":
        return
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        raise _unauthorized("This request needs a key: send the header `Authorization: Bearer KEY`.")
    key = _find(keys, given.token)
    if key is None:
        raise _unauthorized("The key is not known.", error="invalid_token")
    needed = ROLE_OF_METHOD.get(request.method, "submit")
    if ROLES.index(key.role) < ROLES.index(needed):
        raise Forbidden(
            f"{request.method} {request.path} needs the role {needed!r}; this key has {key.role!r}."
        )


def _find(keys: list[Key], token: str) -> Key | None:
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    # every line is compared, each in constant time: how long it takes says nothing about the keys
    found = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    return found[0] if found else None


def _unauthorized(description: str, **parameters: str) -> Unauthorized:
    return Unauthorized(
        description, www_authenticate=WWWAuthenticate("bearer", {"realm": REALM, **parameters})
    )


def _check_origin() -> None:
    """Without keys a browser on this machine must not act for a page of another site.

    `Host` is checked because a name of the attacker's can be made to resolve to 127.0.0.1 (DNS rebinding), which
    makes its page same-origin; an address, a name without a dot and the reserved top-level names cannot be taken.
    """
    if request.endpoint is None or request.blueprint == "health":
        return
    if not _is_local_name(urlsplit(f"//{request.host}").hostname or ""):
        raise Forbidden(
            f"Without keys the API answers to local names only, not to {request.host!r}: set "
            "GRAFTWERK_API_KEYS_FILE to serve it under a public name."
        )
    origin = request.headers.get("Origin")
    if request.method in ("GET", "HEAD", "OPTIONS") or origin is None:
        return
    if urlsplit(origin).netloc != request.host:
        raise Forbidden(f"A page of {origin!r} may not change anything here.")


def _is_local_name(host: str) -> bool:
    if "." not in host or host.endswith((".localhost", ".internal")):
        return True
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False
