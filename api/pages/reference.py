"""The documentation of the API: rendered by Swagger UI, and the OpenAPI document; neither contains data of people."""

from pathlib import Path
from typing import cast

import flask_openapi3_swagger  # type: ignore[import-untyped]
from flask import Blueprint, Response, current_app, jsonify
from flask_openapi3.openapi import OpenAPI

from api.pages.layout import PAGE_POLICY, page_response

POLICY = f"{PAGE_POLICY}; style-src 'self' 'unsafe-inline'"
"""Swagger UI sets inline styles."""

reference = Blueprint("reference", __name__)

swagger = Blueprint(
    "swagger",
    __name__,
    static_folder=Path(flask_openapi3_swagger.__file__).parent / "templates" / "swagger",
    static_url_path="/docs/assets",
)
"""Scripts and styles of Swagger UI from the installed package: the page works without a network."""


@reference.get("/docs")
def docs() -> Response:
    """Returns the documentation."""
    return page_response("reference.html", policy=POLICY)


@reference.get("/openapi.json")
def document() -> Response:
    """Returns the OpenAPI document (3.1)."""
    return jsonify(cast(OpenAPI, current_app).api_doc)
