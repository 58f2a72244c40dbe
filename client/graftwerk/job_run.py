"""Runs of jobs by commands; the HTTP client is loaded when the first one begins."""

from typing import TYPE_CHECKING

from graftwerk.options import Connection, Submission
from graftwerk.request_parts import JsonObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from graftwerk.job_handle import JobHandle


def run_job(
    connection: Connection,
    submission: Submission,
    request: JsonObject,
    *,
    save: "Callable[[JobHandle], None] | None" = None,
) -> None:
    """Submits a job and follows it, or shows its plan, as `graftwerk.submission.submit_and_follow` says."""
    from graftwerk.submission import submit_and_follow

    submit_and_follow(connection, submission, request, save=save)
