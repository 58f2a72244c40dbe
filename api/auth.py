"""Access control: bearer keys and sessions with roles; without keys, only local clients and no pages of other sites."""

import hmac
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from flask import Flask, Response, current_app, g, request
from redis import Redis
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized
from werkzeug.wrappers import Response as AnyResponse

from api.headers import request_id
from api.keys import Key, KeyFile
from api.origins import SAFE_METHODS, check_local, check_site_of_browser
from api.session import Session, Sessions, sessions_of
from api.sign_in_address import REALM, htmx_redirect_to_sign_in, redirect_to_sign_in
from api.wrong_keys import wrong_key_counter
from services.errors import InvalidSettings, NotReady
from services.jobs.submission import Origin
from services.settings import LOOPBACK_HOSTS, Settings

ROLE_OF_METHOD = {"GET": "read", "HEAD": "read", "OPTIONS": "read", "DELETE": "admin"}
"""Role that a method needs; all other methods change something and need `submit`."""

ROLE_OF_BLUEPRINT = {"uploads": "submit", "tokenizer": "submit"}
"""Role that every method of a blueprint needs, except OPTIONS: uploads are read, continued and removed by their senders, and each
request to a tokenizer is a job."""

OPEN_BLUEPRINTS = ("health", "session", "reference", "sentences")
"""Blueprints without data of models and jobs, open without a key: probes, the sign-in, the documentation, translations."""

PAGES = "pages_"
"""Beginning of the names of the blueprints of pages."""

CSRF_HEADER = "X-CSRF-Token"

KEY_HEADER = "x-api-key"
"""Header with a key as Anthropic's clients send it; a bearer key counts before it."""

EXTENSION = "graftwerk.access"


@dataclass(frozen=True, slots=True)
class Caller:
    """The key of a request, and the session if it came by cookie."""

    key: Key
    session: Session | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """The keys of an application, None if it has none, its sessions, and the count of wrong keys."""

    key_file: KeyFile | None
    sessions: Sessions
    count_wrong_key: Callable[[str], None]

    def find(self, key: str) -> Key | None:
        """Returns the line of a key; a wrong one is counted.

        Raises:
            TooManyRequests: there were too many wrong keys.
        """
        found = self.key_file.find(key) if self.key_file else None
        if found is None:
            self.count_wrong_key(key)
        return found


def register(app: Flask, settings: Settings, redis: Redis) -> None:
    """Checks every request of the application before its view.

    Raises:
        InvalidSettings: the API would be open to other machines without a key, or its keys or its secret cannot be read.
    """
    app.extensions[EXTENSION] = Access(
        _key_file(settings), sessions_of(settings, redis), wrong_key_counter(app, redis)
    )
    app.before_request(_check)
    app.after_request(_renew)
    app.context_processor(lambda: {"signed_in": signed_in(), "may": may, "csrf_token": csrf_token})


def access() -> Access:
    """Returns the access control of the application that handles the current request."""
    found: Access = current_app.extensions[EXTENSION]
    return found


def caller() -> Caller | None:
    """Returns the caller of the current request by its cookie or, on routes that need one, by its bearer key."""
    if "caller" not in g:
        g.caller = None  # an error page must not fail as the request did
        g.caller = _by_session()
    found: Caller | None = g.caller
    return found


def signed_in() -> Key | None:
    """Returns the key that the current request has, with `name` and `role`; None also where there are no keys."""
    found = caller()
    return found.key if found else None


def may(role: str) -> bool:
    """Returns True if the current request has the rights of a role; without keys every request has all."""
    key = signed_in()
    return access().key_file is None if key is None else key.includes(role)


def csrf_token() -> str:
    """Returns the value of the header `X-CSRF-Token` for this session; empty for requests that need none."""
    found = caller()
    return found.session.csrf_token if found and found.session else ""


def check_csrf(session: Session, given: str) -> None:
    """Checks that a page of this service sends the current request.

    Raises:
        Forbidden: the token is not that of the session, or the browser names another site.
    """
    check_site_of_browser()
    if not hmac.compare_digest(session.csrf_token.encode(), given.encode("utf-8", "surrogateescape")):
        state = "wrong" if given else "missing"
        raise Forbidden(
            f"The header {CSRF_HEADER} is {state}. A request with the cookie of a session needs it: "
            "GET /api/session has its value."
        )


def origin() -> Origin:
    """Returns the origin of the current request: its key, which the check has found, and its id."""
    key = signed_in()
    return Origin(key.digest if key else "", request_id())


def _key_file(settings: Settings) -> KeyFile | None:
    if settings.api_keys_file is not None:
        return KeyFile(settings.api_keys_file)
    if settings.host not in LOOPBACK_HOSTS and not settings.behind_gateway:
        raise InvalidSettings(
            f"The API would listen on {settings.host}, beyond loopback, without a key.",
            "Set GRAFTWERK_API_KEYS_FILE to a file of keys, or GRAFTWERK_HOST to 127.0.0.1.",
        )
    return None


def _check() -> AnyResponse | None:
    if access().key_file is None:
        check_local()
        return None
    if request.endpoint is None or request.blueprint in OPEN_BLUEPRINTS or request.endpoint == "static":
        return None
    g.caller = _by_key() or caller()
    if g.caller is None:
        if "HX-Request" in request.headers:
            return htmx_redirect_to_sign_in()
        if _is_page():
            return redirect_to_sign_in()
        raise _unauthorized(
            "This request needs a key: send the header `Authorization: Bearer KEY` or `x-api-key: KEY`, or sign in at /login."
        )
    _check_rights(g.caller)
    return None


def _check_rights(found: Caller) -> None:
    if found.session is not None and request.method not in SAFE_METHODS:
        check_csrf(found.session, request.headers.get(CSRF_HEADER, ""))
    needed = _needed_role()
    if not found.key.includes(needed):
        raise Forbidden(
            f"{request.method} {request.path} needs the role {needed!r}; this key has {found.key.role!r}."
        )


def _by_key() -> Caller | None:
    given = request.authorization
    is_bearer = given is not None and given.type == "bearer" and given.token
    token = given.token if given is not None and is_bearer else request.headers.get(KEY_HEADER)
    if not token:
        return None
    key = access().find(token)
    if key is None:
        raise _unauthorized("The key is unknown.", error="invalid_token")
    return Caller(key)


def _by_session() -> Caller | None:
    key_file = access().key_file
    session = access().sessions.read(key_file.keys()) if key_file else None
    return Caller(session.key, session) if session else None


def _renew(response: Response) -> Response:
    found: Caller | None = g.get("caller")
    if found is not None and found.session is not None:
        response.vary.add("Cookie")
        if found.session.is_due:
            with suppress(NotReady):  # the old cookie is still valid
                access().sessions.renew(response, found.session)
    return response


def _is_page() -> bool:
    return (request.blueprint or "").startswith(PAGES)


def _needed_role() -> str:
    if request.method != "OPTIONS" and request.blueprint in ROLE_OF_BLUEPRINT:
        return ROLE_OF_BLUEPRINT[request.blueprint]
    return "read" if _is_dry_run() else ROLE_OF_METHOD.get(request.method, "submit")


def _is_dry_run() -> bool:
    """Returns True for a plan, which changes nothing: one `dry_run=true`, which no view can read otherwise."""
    return request.endpoint == "jobs.submit" and request.args.getlist("dry_run") == ["true"]


def _unauthorized(description: str, **parameters: str) -> Unauthorized:
    return Unauthorized(
        description, www_authenticate=WWWAuthenticate("bearer", {"realm": REALM, **parameters})
    )
