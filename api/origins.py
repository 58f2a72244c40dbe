"""Rules against pages of other sites: the host that a request names, and the site whose page sends it."""

import ipaddress
import re
from urllib.parse import urlsplit

from flask import request
from werkzeug.exceptions import BadRequest, Forbidden

HOST = re.compile(
    r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?)(?::[0-9]{1,5})?"
)
"""A name, an IPv4 address or an IPv6 address in brackets, with or without a port; nothing else, such as a user."""

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
OWN_SITES = ("same-origin", "none")
"""Values of `Sec-Fetch-Site` of requests by a page of the service, or by the person who uses the browser."""


def check_host() -> None:
    """Refuses a request without a well-formed host; probes may leave it out.

    Raises:
        BadRequest: the header `Host` is missing, empty or malformed.
    """
    if request.blueprint != "health" and HOST.fullmatch(_host()) is None:
        raise BadRequest(
            f"The header Host is {_host()!r}; a name or an address is needed, with or without a port."
        )


def check_local() -> None:
    """Refuses requests that a page of another site makes through a browser on this machine.

    `Host` is checked because an attacker can make a domain resolve to 127.0.0.1 (DNS rebinding), which makes its page
    same-origin. Addresses, names without a dot and reserved top-level domains cannot be registered. Browsers send `Origin`
    or `Sec-Fetch-Site` with a request that changes something; other programs send neither.

    Raises:
        Forbidden: the host is not a local name, or the request comes from a page of another origin.
    """
    if request.endpoint is None or request.blueprint == "health":
        return
    host = HOST.fullmatch(_host())
    if host is None or not _is_local_name(host["name"].strip("[]")):
        raise Forbidden(
            f"Without keys the API answers requests to local names only, not to {_host()!r}. Set "
            "GRAFTWERK_API_KEYS_FILE to serve it under a public name."
        )
    if request.method not in SAFE_METHODS:
        _check_origin()
        check_site_of_browser()


def check_sender() -> None:
    """Refuses a form that a page of another site sends; browsers name the site, older ones the origin only.

    Raises:
        Forbidden: the browser names another site or origin.
    """
    check_site_of_browser()
    if "Sec-Fetch-Site" not in request.headers:
        _check_origin()


def check_site_of_browser() -> None:
    """Refuses a request if the browser says that a page of another site sends it.

    Raises:
        Forbidden: the browser names another site.
    """
    if request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITES:
        raise Forbidden("A page of another site may not change anything in this service.")


def _check_origin() -> None:
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != _host():
        raise Forbidden(f"A page of {origin!r} may not change anything in this service.")


def _host() -> str:
    host: str = request.environ.get("HTTP_HOST", "")
    return host


def _is_local_name(host: str) -> bool:
    if "." not in host or host.endswith((".localhost", ".internal")):
        return True
    try:
        return bool(ipaddress.ip_address(host))
    except ValueError:
        return False
