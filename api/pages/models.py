"""The page Models: the models on the volume, and ways to bring more."""

from flask import Response

from api.pages.layout import page_blueprint, page_response

page = page_blueprint("models")


@page.get("/")
def models() -> Response:
    """Returns the page."""
    return page_response("models/page.html")
