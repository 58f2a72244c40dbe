"""What a browser opens: the page, the documentation and the document that it shows. No data is in them."""

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
"""Swagger UI sets styles of elements as it draws."""

pages = Blueprint("pages", __name__)

swagger = Blueprint(
    "swagger",
    __name__,
    static_folder=Path(flask_openapi3_swagger.__file__).parent / "templates" / "swagger",
    static_url_path="/docs/assets",
)
"""The scripts and styles of Swagger UI, from the installed package: the page works without a network."""


@pages.get("/")
def home() -> Response:
    """The page: a model to try, jobs as they run, models, and where to read on."""
    return _page("home.html", PAGE_POLICY, templates=list(TEMPLATES))


@pages.get("/docs")
def docs() -> Response:
    """The documentation, by Swagger UI."""
    return _page("docs.html", DOCS_POLICY)


@pages.get("/openapi.json")
def document() -> Response:
    """The OpenAPI document (3.1)."""
    return jsonify(cast(OpenAPI, current_app).api_doc)


def _page(template: str, policy: str, **values: Any) -> Response:
    response = Response(render_template(template, **values), mimetype="text/html")
    response.headers["Content-Security-Policy"] = policy
    response.headers["Cache-Control"] = "no-cache"
    return response
