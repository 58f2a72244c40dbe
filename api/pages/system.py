"""The page System: workers, queues, memory and disk."""

from flask import Response

from api.pages.layout import page_blueprint, page_response

page = page_blueprint("system")


@page.get("/system")
def system() -> Response:
    """Returns the page."""
    return page_response("system/page.html")
