"""Access control: bearer keys with roles; without keys, only local clients and no pages of other sites.

The key file has one line for each key, `sha256 role name`: the SHA-256 of the key in hexadecimal, one of `read`, `submit`
and `admin`, and a display name. Blank lines and lines that begin with `#` are skipped.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from flask import g, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from api.headers import request_id
from api.origins import check_local
from services.errors import InvalidSettings
from services.jobs.submission import Origin
from services.settings import LOOPBACK_HOSTS, Settings

ROLES = ("read", "submit", "admin")
"""Roles in ascending order; each includes the rights of those before it."""

ROLE_OF_METHOD = {"GET": "read", "HEAD": "read", "OPTIONS": "read", "DELETE": "admin"}
"""Role that a method needs; all other methods change something and need `submit`."""

ROLE_OF_BLUEPRINT = {"uploads": "submit"}
"""Role that every method of a blueprint needs, except OPTIONS: uploads are read, continued and removed by their senders."""

OPEN_BLUEPRINTS = ("health", "reference", "swagger")
"""Blueprints without data of people, open without a key: probes and the documentation of the API."""

REALM = "Graftwerk API"
"""Realm of the challenge; the space makes werkzeug quote it, as RFC 9110, section 11.5 requires."""


class Key(NamedTuple):
    """One line of the key file."""

    digest: str
    role: str
    name: str


def read_keys(path: Path) -> list[Key]:
    """Returns the keys in a file.

    Raises:
        InvalidSettings: the file cannot be read, a line is malformed, or there is no key.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InvalidSettings(f"GRAFTWERK_API_KEYS_FILE {path} cannot be read: {error.strerror}.") from error
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


def guard(settings: Settings, count_wrong_key: Callable[[str], None]) -> Callable[[], None]:
    """Returns the check that runs before each request; it reports unknown keys to `count_wrong_key`.

    Raises:
        InvalidSettings: the API would be open to other machines without a key.
    """
    if settings.api_keys_file is not None:
        keys = read_keys(settings.api_keys_file)
        return lambda: _check_key(keys, count_wrong_key)
    if settings.host not in LOOPBACK_HOSTS and not settings.behind_gateway:
        raise InvalidSettings(
            f"The API would listen on {settings.host}, beyond loopback, without a key.",
            "Set GRAFTWERK_API_KEYS_FILE to a file of keys, or GRAFTWERK_HOST to 127.0.0.1.",
        )
    return check_local


def _check_key(keys: list[Key], count_wrong_key: Callable[[str], None]) -> None:
    if request.endpoint is None or request.blueprint in OPEN_BLUEPRINTS or request.endpoint == "static":
        return
    given = request.authorization
    if given is None or given.type != "bearer" or not given.token:
        raise _unauthorized("This request needs a key: send the header `Authorization: Bearer KEY`.")
    key = _find(keys, given.token)
    if key is None:
        count_wrong_key(given.token)
        raise _unauthorized("The key is unknown.", error="invalid_token")
    g.key_digest = key.digest
    needed = _needed_role()
    if ROLES.index(key.role) < ROLES.index(needed):
        raise Forbidden(
            f"{request.method} {request.path} needs the role {needed!r}; this key has {key.role!r}."
        )


def origin() -> Origin:
    """Returns the origin of the current request: its key, which the guard has checked, and its id."""
    return Origin(g.get("key_digest", ""), request_id())


def _needed_role() -> str:
    if request.method != "OPTIONS" and request.blueprint in ROLE_OF_BLUEPRINT:
        return ROLE_OF_BLUEPRINT[request.blueprint]
    return ROLE_OF_METHOD.get(request.method, "submit")


def _find(keys: list[Key], token: str) -> Key | None:
    digest = hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
    # all keys are compared in constant time, so that the duration reveals nothing about them
    found = [key for key in keys if hmac.compare_digest(key.digest, digest)]
    return found[0] if found else None


def _unauthorized(description: str, **parameters: str) -> Unauthorized:
    return Unauthorized(
        description, www_authenticate=WWWAuthenticate("bearer", {"realm": REALM, **parameters})
    )
