"""The documentation of the API, rendered from its OpenAPI document; neither contains data of people."""

from typing import cast

from flask import Blueprint, Response, current_app, jsonify, render_template
from flask_babel import get_locale
from flask_openapi3.openapi import OpenAPI
from markupsafe import Markup

from api.pages.layout import page_response
from api.pages.openapi_view import code_spans, reference_of

EXTENSION = "graftwerk-reference"

reference = Blueprint("reference", __name__)
reference.add_app_template_filter(code_spans)


@reference.get("/docs")
def docs() -> Response:
    """Returns the documentation."""
    return page_response("reference/page.html", content=_content(str(get_locale())))


@reference.get("/openapi.json")
def document() -> Response:
    """Returns the OpenAPI document (3.1)."""
    return jsonify(_document())


def _document() -> dict[str, object]:
    return cast(OpenAPI, current_app).api_doc


def _content(language: str) -> Markup:
    """Returns the content of the page, which is rendered once for each language."""
    kept: dict[str, Markup] = current_app.extensions.setdefault(EXTENSION, {})
    if language not in kept:
        kept[language] = Markup(
            render_template("reference/content.html", reference=reference_of(_document()))
        )
    return kept[language]
