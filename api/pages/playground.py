"""The page Playground: text from the models."""

from flask import Response

from api.pages.layout import page_blueprint, page_response

page = page_blueprint("playground")


@page.get("/playground")
def playground() -> Response:
    """Returns the page."""
    return page_response("playground/page.html")
