"""Pages for browsers: the home page, the documentation and the OpenAPI document; none contains user data."""

from pathlib import Path
from typing import Any, cast

import flask_openapi3_swagger  # type: ignore[import-untyped]
from flask import Blueprint, Response, current_app, jsonify, render_template
from flask_openapi3.openapi import OpenAPI

from services.templates import TEMPLATES

PAGE_POLICY = "; ".join((
    "default-src 'self'", "img-src 'self' data:", "object-src 'none'", "base-uri 'none'", "form-action 'self'",
    "frame-ancestors 'none'",
))  # fmt: skip

DOCS_POLICY = f"{PAGE_POLICY}; style-src 'self' 'unsafe-inline'"
"""Swagger UI sets inline styles."""

pages = Blueprint("pages", __name__)

swagger = Blueprint(
    "swagger",
    __name__,
    static_folder=Path(flask_openapi3_swagger.__file__).parent / "templates" / "swagger",
    static_url_path="/docs/assets",
)
"""Scripts and styles of Swagger UI from the installed package: the page works without a network."""


@pages.get("/")
def home() -> Response:
    """Returns the home page: a playground, jobs, models, and links to the documentation."""
    return _page("home.html", PAGE_POLICY, templates=list(TEMPLATES))


@pages.get("/docs")
def docs() -> Response:
    """Returns the documentation, rendered by Swagger UI."""
    return _page("docs.html", DOCS_POLICY)


@pages.get("/openapi.json")
def document() -> Response:
    """Returns the OpenAPI document (3.1)."""
    return jsonify(cast(OpenAPI, current_app).api_doc)


def _page(template: str, policy: str, **values: Any) -> Response:
    response = Response(render_template(template, **values), mimetype="text/html")
    response.headers["Content-Security-Policy"] = policy
    response.headers["Cache-Control"] = "no-cache"
    return response
