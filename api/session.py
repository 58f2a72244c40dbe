"""Sessions of people who signed in with a key: a signed cookie, its lifetime, and the token against forged requests.

The cookie holds an id, the time of the sign-in and a digest that finds the key's line again. It is valid while that line is
in the key file, for 12 h after it was last renewed and for 7 days in all. What was signed out of is remembered
in Redis, so that a copied cookie ends too.
"""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from typing import Any

from flask import Response, request
from itsdangerous import BadData, URLSafeTimedSerializer

from api.keys import Key
from services.errors import InvalidSettings
from services.jobs.sessions import SessionRecords
from services.settings import Settings

COOKIE = "graftwerk_session"

IDLE_SECONDS = 12 * 3600
"""Time after which an unused session ends."""

LIFETIME_SECONDS = 7 * 86400
"""Time after which a session ends although it is used."""

RENEWAL_SECONDS = 600
"""Age at which a cookie is replaced by a new one."""

SHORTEST_SECRET = 16
"""Fewest characters of the setting's secret."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A session that is valid now; `is_due` if its cookie should be renewed."""

    id: str
    key: Key
    started_at: int
    csrf_token: str
    is_due: bool = False


class Sessions:
    """All sessions of one application."""

    def __init__(self, records: SessionRecords) -> None:
        """Opens the sessions whose secret is in these records."""
        self._records = records

    def start(self, response: Response, key: Key) -> None:
        """Begins a session of this key with the cookie of a response.

        Raises:
            NotReady: Redis does not answer.
        """
        self._set_cookie(response, secrets.token_urlsafe(18), key, int(time.time()))

    def renew(self, response: Response, session: Session) -> None:
        """Renews the cookie of a session.

        Raises:
            NotReady: Redis does not answer.
        """
        self._set_cookie(response, session.id, session.key, session.started_at)

    def end(self, session: Session) -> None:
        """Ends a session, its copied cookies too.

        Raises:
            NotReady: Redis does not answer.
        """
        self._records.end(session.id, LIFETIME_SECONDS)

    def read(self, keys: list[Key]) -> Session | None:
        """Returns the session of the current request's cookie, None if there is no valid one.

        Raises:
            NotReady: Redis does not answer.
        """
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        secret = self._records.secret()
        try:
            content, signed_at = _signer(secret).loads(cookie, max_age=IDLE_SECONDS, return_timestamp=True)
        except BadData:
            return None
        return self._valid(content, time.time() - signed_at.timestamp(), secret, keys)

    def _valid(self, content: Any, age: float, secret: str, keys: list[Key]) -> Session | None:
        key = next((key for key in keys if _fingerprint(secret, key) == content["key"]), None)
        is_over = time.time() - content["started_at"] > LIFETIME_SECONDS
        if key is None or is_over or self._records.is_ended(content["id"]):
            return None
        return Session(
            id=content["id"],
            key=key,
            started_at=content["started_at"],
            csrf_token=_digest(secret, "csrf", content["id"]),
            is_due=age > RENEWAL_SECONDS,
        )

    def _set_cookie(self, response: Response, session_id: str, key: Key, started_at: int) -> None:
        secret = self._records.secret()
        content = {"id": session_id, "key": _fingerprint(secret, key), "started_at": started_at}
        response.set_cookie(
            COOKIE,
            _signer(secret).dumps(content),
            max_age=IDLE_SECONDS,
            secure=_is_https(),
            httponly=True,
            samesite="Lax",
        )


def sessions_of(settings: Settings, redis: Any) -> Sessions:
    """Returns the sessions of an application with these settings.

    Raises:
        InvalidSettings: the secret cannot be read or is too short.
    """
    try:
        secret = settings.session_key
    except OSError as error:
        raise InvalidSettings(
            f"GRAFTWERK_SESSION_SECRET_FILE cannot be read: {error.strerror or error}."
        ) from error
    if secret is not None and len(secret) < SHORTEST_SECRET:
        raise InvalidSettings(
            f"GRAFTWERK_SESSION_SECRET has {len(secret)} characters; at least {SHORTEST_SECRET} are needed.",
            "Make one with `openssl rand -hex 32`, or leave it out: then it is made and kept in Redis.",
        )
    return Sessions(SessionRecords(redis, secret))


def _signer(secret: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(
        secret, salt="graftwerk session", signer_kwargs={"digest_method": hashlib.sha256}
    )


def _fingerprint(secret: str, key: Key) -> str:
    # the plain digest would let whoever copies a cookie test guesses of the key
    return _digest(secret, "key", key.digest)


def _digest(secret: str, purpose: str, text: str) -> str:
    return hmac.new(secret.encode(), f"{purpose}\n{text}".encode(), hashlib.sha256).hexdigest()


def _is_https() -> bool:
    # a forged header only keeps the sender's own cookie from being sent unencrypted
    return request.is_secure or request.headers.get("X-Forwarded-Proto") == "https"
