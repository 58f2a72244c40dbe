"""Addresses of the sign-in: where a request without a session is sent, and where a person goes afterwards."""

import re
from urllib.parse import quote, urlsplit

from flask import redirect, request, url_for
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.wrappers import Response

HOME = "/"

REALM = "Graftwerk API"
"""Realm of the challenge; the space makes werkzeug quote it, as RFC 9110, section 11.5 requires."""

LONGEST = 2000

# browsers read `//host` and `/\host` as another host, and skip tabs and line breaks in addresses
LOCAL_PATH = re.compile(r"/(?![/\\])[^\\\x00-\x20\x7f]*")


def local_path(given: str) -> str:
    """Returns an address to go to after the sign-in: the given one if it is a path of this service, else the home page."""
    is_local = len(given) <= LONGEST and LOCAL_PATH.fullmatch(given) is not None
    return given if is_local and urlsplit(given).path != _login() else HOME


def sign_in_address(page: str) -> str:
    """Returns the address of the sign-in that leads to a page."""
    path = local_path(page)
    return _login() if path == HOME else f"{_login()}?next={quote(path, safe='/')}"


def redirect_to_sign_in() -> Response:
    """Returns the redirect of a page's request to the sign-in, and from there back to the page if it was only read."""
    is_read = request.method in ("GET", "HEAD")
    page = _with_query(quote(request.path), request.query_string.decode("latin-1")) if is_read else HOME
    response = redirect(sign_in_address(page), 303)
    response.headers["Cache-Control"] = "no-store"
    return response


def htmx_redirect_to_sign_in() -> Response:
    """Returns the answer to a request of htmx, which then opens the sign-in, and from there its page."""
    response = Response(status=401, headers={"HX-Redirect": sign_in_address(_page_of_htmx())})
    response.www_authenticate = WWWAuthenticate("bearer", {"realm": REALM})
    response.headers["Cache-Control"] = "no-store"
    return response


def _page_of_htmx() -> str:
    try:
        page = urlsplit(request.headers.get("HX-Current-URL", ""))
    except ValueError:
        return HOME
    return _with_query(page.path, page.query)


def _login() -> str:
    return url_for("session.login")


def _with_query(path: str, query: str) -> str:
    return f"{path}?{query}" if query else path
