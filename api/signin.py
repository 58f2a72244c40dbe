"""Sign-in of people: a key once, then the cookie of a session."""

from typing import Literal

from flask import Blueprint, Response, redirect, render_template, request
from flask_babel import gettext
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field
from werkzeug.exceptions import HTTPException, TooManyRequests
from werkzeug.wrappers import Response as AnyResponse

from api.auth import CSRF_HEADER, access, caller, check_csrf, csrf_token, signed_in
from api.errors import error_response, problems, sentences
from api.openapi import SECURITY
from api.origins import check_sender
from api.pages.layout import PAGE_POLICY, error_page
from api.responses import json_response
from api.session import COOKIE
from api.sign_in_address import local_path, sign_in_address
from api.wrong_keys import WAIT_SECONDS
from services.errors import GraftwerkError, NotReady

FORM_BYTES = 16 * 1024
"""Largest body of the form."""

page = Blueprint("session", __name__)
page.register_error_handler(GraftwerkError, error_page)
page.register_error_handler(HTTPException, error_page)

api = APIBlueprint(
    "session_state",
    __name__,
    url_prefix="/api",
    abp_tags=[Tag(name="system")],
    abp_security=SECURITY,
    abp_responses=problems(400, 401, 403, 429, 500, 503),
)


class SessionState(BaseModel):
    """The sender of this request, and the token that its changes by cookie need."""

    name: str | None = Field(description="Display name of the key; null if the API has no keys.")
    role: Literal["read", "submit", "admin"]
    csrf_token: str = Field(
        description="Value of the header `X-CSRF-Token`, which requests with the cookie need except GET; empty without a cookie."
    )


@api.get("/session", responses={200: SessionState})
def session() -> Response:
    """Get the role of the sender, and the token that changes by cookie need."""
    key = signed_in()
    found = SessionState.model_validate({
        "name": key.name if key else None,
        "role": key.role if key else "admin",
        "csrf_token": csrf_token(),
    })  # fmt: skip
    return json_response(found)


@page.get("/login")
def login() -> AnyResponse:
    """Returns the form, or a redirect if there is nothing to sign in to or the person is signed in."""
    target = local_path(request.args.get("next", ""))
    if access().key_file is None or signed_in() is not None:
        return redirect(target, 303)
    return _form(target)


@page.post("/login")
def sign_in() -> AnyResponse:
    """Begins a session with the key of the form and returns to the page that asked for it."""
    request.max_content_length = FORM_BYTES
    target = local_path(request.form.get("next", ""))
    if access().key_file is None:
        return redirect(target, 303)
    check_sender()
    try:
        return _begin(target, request.form.get("key", "").strip())
    except TooManyRequests as error:
        return _form(target, error.code, error.description, **{"Retry-After": str(WAIT_SECONDS)})
    except NotReady as error:
        return _form(target, 503, sentences(error.message, error.hint))


@page.post("/logout")
def logout() -> AnyResponse:
    """Ends the session and returns to the form."""
    request.max_content_length = FORM_BYTES
    found = caller()
    if found is not None and found.session is not None:
        token = request.headers.get(CSRF_HEADER) or request.form.get("csrf_token", "")
        check_csrf(found.session, token)
        access().sessions.end(found.session)
    is_htmx = "HX-Request" in request.headers
    status, header = (204, "HX-Redirect") if is_htmx else (303, "Location")
    response = Response(status=status, headers={header: sign_in_address("/"), "Cache-Control": "no-store"})
    response.delete_cookie(COOKIE, httponly=True, samesite="Lax")
    return response


def _begin(target: str, given: str) -> Response:
    key = access().find(given)
    if key is None:
        return _form(target, 401, gettext("This key is unknown. Check that it was copied completely."))
    response = Response(status=303, headers={"Location": target, "Cache-Control": "no-store"})
    access().sessions.start(response, key)
    return response


def _form(target: str, status: int = 200, message: str | None = None, **headers: str) -> Response:
    html = render_template("login.html", next=target, message=message)
    response = error_response(html, status, "text/html", headers)
    response.headers["Content-Security-Policy"] = PAGE_POLICY
    # without a referrer browsers send `Origin: null` with a form, which would not be this site
    response.headers["Referrer-Policy"] = "same-origin"
    return response
