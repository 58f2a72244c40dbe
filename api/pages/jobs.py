"""The page Jobs: the board of jobs."""

from flask import Response

from api.pages.layout import page_blueprint, page_response

page = page_blueprint("jobs")


@page.get("/jobs")
def jobs() -> Response:
    """Returns the page."""
    return page_response("jobs/page.html")
