"""The page New merge: a merge, composed and checked before it is submitted."""

from flask import Response

from api.pages.layout import page_blueprint, page_response

page = page_blueprint("merge")


@page.get("/merge")
def merge() -> Response:
    """Returns the page."""
    return page_response("merge/page.html")
