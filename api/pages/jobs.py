"""The page Jobs: the board of jobs, and a page for each job."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from flask import Response, request

from api.jobs import JobPath, job_id_of
from api.pages import job_rows
from api.pages.job_rows import JobRow, rows_of
from api.pages.kind_names import kind_names
from api.pages.layout import is_fragment_request, page_blueprint, page_response
from api.pages.progress_names import STATUSES
from api.state import state
from services.errors import InvalidRequest
from services.jobs.listing import JobFilter, newer_cursor
from services.jobs.upstream import waiting_dependents
from services.kinds import KINDS
from services.kinds.model_summary import ModelSummary

PAGE_SIZE = 50
LARGEST_BATCH = 2 * PAGE_SIZE
"""Most rows of one request for rows: those of a page, and new ones."""

LOG_LINES_SHOWN = 500
page = page_blueprint("jobs")


@page.context_processor
def names() -> dict[str, Any]:
    """Returns the names of kinds in the language of the request, and functions for results."""
    return {"kind_names": kind_names(), "figures": job_rows}


@page.get("/jobs")
def jobs() -> Response:
    """Returns the page, or the board alone for htmx."""
    chosen = _filters(request.args)
    after = request.args.get("after") or None
    selected = JobFilter(chosen.get("kind"), chosen.get("status"), chosen.get("model"))  # type: ignore[arg-type]
    found, older = state().queue.list(selected, limit=PAGE_SIZE, after=after)
    values: dict[str, Any] = {
        "total": state().queue.count(selected), "rows": job_rows.job_rows(found), "chosen": chosen, "after": after, "older": _address(chosen, older),
        "newer": _newer(chosen, selected, after), "kinds": kind_names(), "statuses": tuple(STATUSES),
    }  # fmt: skip
    if is_fragment_request():
        response = page_response("jobs/board.html", **values)
        address = _address(chosen, after, is_first=after is None) or "/jobs"
        if not request.headers.get("HX-Current-URL", "").endswith(
            address
        ):  # a refresh adds no step to the history
            response.headers["HX-Push-Url"] = address
        return response
    return page_response("jobs/page.html", models=state().store.names(), **values)


@page.get("/jobs/rows")
def rows() -> Response:
    """Returns rows of the board; those of other jobs than the filter selects are marked so."""
    chosen = _filters(request.args)
    selected = JobFilter(chosen.get("kind"), chosen.get("status"), chosen.get("model"))  # type: ignore[arg-type]
    job_ids = [job_id_of(JobPath(job_id=text)) for text in request.args.getlist("id")[:LARGEST_BATCH]]
    return page_response("jobs/rows.html", rows=rows_of(job_ids), selected=selected)


@page.get("/jobs/<job_id>")
def job(job_id: str) -> Response:
    """Returns the page of one job, or its content alone for htmx."""
    found = state().queue.get(job_id_of(JobPath(job_id=job_id)))
    row = job_rows.job_rows([found])[0]
    template = "jobs/detail.html" if is_fragment_request() else "jobs/job.html"
    return page_response(template, row=row, job=row.job, **_surroundings(row))


def _surroundings(row: JobRow) -> dict[str, Any]:
    queue = state().queue
    lines = queue.log(row.job.id).splitlines()
    return {
        "upstream": rows_of(row.job.after),
        "downstream": rows_of(waiting_dependents(queue.redis, row.job.id)),
        "deliveries": queue.deliveries(row.job.id) if row.job.request.webhook else [],
        "log": lines[-LOG_LINES_SHOWN:],
        "made": _made(row),
        "omitted_lines": max(0, len(lines) - LOG_LINES_SHOWN),
    }


def _made(row: JobRow) -> ModelSummary | None:
    """Returns the model that the job has made as it is now, None if another has its name or if it is gone."""
    name = row.job.request.makes
    if row.job.status != "succeeded" or name is None or name not in state().store.names():
        return None
    found = state().models.describe(name)
    return found if (found.lineage or {}).get("job_id") == row.job.id else None


def _filters(args: Mapping[str, str]) -> dict[str, str]:
    """Returns the filters that are set.

    Raises:
        InvalidRequest: a kind or a status does not exist.
    """
    chosen = {name: args[name].strip() for name in ("kind", "status", "model") if args.get(name, "").strip()}
    for name, allowed in (("kind", tuple(KINDS)), ("status", tuple(STATUSES))):
        if name in chosen and chosen[name] not in allowed:
            raise InvalidRequest(
                f"{chosen[name][:80]!r} is not a {name} of jobs.", f"It is one of {', '.join(allowed)}."
            )
    return chosen


def _newer(chosen: dict[str, str], selected: JobFilter, after: str | None) -> str | None:
    """Returns the address of the page with newer jobs, None on the first page."""
    if after is None:
        return None
    cursor = newer_cursor(state().queue.redis, selected, limit=PAGE_SIZE, after=after)
    return _address(chosen, cursor, is_first=cursor is None)


def _address(chosen: dict[str, str], after: str | None, *, is_first: bool = False) -> str | None:
    """Returns the address of a page of the board; None without a cursor, unless it is the first page."""
    if after is None and not is_first:
        return None
    parameters = chosen if after is None else {**chosen, "after": after}
    return f"/jobs?{urlencode(parameters)}" if parameters else "/jobs"
