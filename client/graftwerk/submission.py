"""Submission of a job by a command: show its progress and result, and exit with its outcome."""

import json
from collections.abc import Callable

import typer

from graftwerk.display import complain, note, open_console, print_result, warn
from graftwerk.errors import ApiError
from graftwerk.interruption import interruptible
from graftwerk.job_handle import JobHandle
from graftwerk.model_results import VerifyResult
from graftwerk.models import Job, JsonObject
from graftwerk.options import Connection, Submission, given
from graftwerk.tables import plan_view

EXIT_FAILED = 1
EXIT_CANCELED = 130


def submit_and_follow(
    connection: Connection,
    submission: Submission,
    request: JsonObject,
    *,
    save: Callable[[JobHandle], None] | None = None,
) -> None:
    """Submits a job and follows it to its end, or shows its plan.

    Args:
        save: called with a job that has succeeded, before its result is printed.

    Raises:
        typer.Exit: with the job's outcome as exit code.
    """
    request = request | given(after=submission.after)
    with connection.open() as client:
        if submission.dry_run:
            show_plan(client.plan(request), as_json=submission.as_json)
            return
        handle = client.submit(request)
        for warning in handle.job.warnings:
            warn(warning)
        if submission.no_wait:
            show_submitted(handle.job, as_json=submission.as_json)
            return
        job = follow(handle)
        if save is not None and job.status == "succeeded":
            save(handle)
    finish(job, as_json=submission.as_json, verbose=submission.verbose)


def show_plan(plan: JsonObject, *, as_json: bool) -> None:
    """Prints a dry run's plan."""
    if as_json:
        typer.echo(json.dumps(plan, indent=2, ensure_ascii=False))
    else:
        open_console().print(plan_view(plan))


def show_submitted(job: Job, *, as_json: bool) -> None:
    """Prints a job that is not waited for: its id, or all of it as JSON."""
    typer.echo(job.model_dump_json(indent=2) if as_json else job.id)


def follow(handle: JobHandle) -> Job:
    """Returns the ended job; its progress is shown on stderr. Ctrl-C asks for one key: cancel, detach or go on.

    Raises:
        typer.Exit: the person has detached.
    """
    note(f"job {handle.id}", style="dim")
    job = interruptible(lambda: handle.wait(progress=True), lambda: cancel_if_running(handle), "the job")
    if job is None:
        note(f"Detached; the job continues. Follow it with `graftwerk jobs watch {handle.id}`.")
        raise typer.Exit(EXIT_CANCELED)
    return job


def cancel_if_running(handle: JobHandle) -> None:
    """Cancels a job that may have ended a moment ago."""
    try:
        handle.cancel()
    except ApiError as error:
        if error.status != 409:
            raise


def finish(job: Job, *, as_json: bool, verbose: bool = False) -> None:
    """Prints an ended job's result, with `verbose` in all details, or its error.

    Raises:
        typer.Exit: the job failed, was canceled, or is a verification that did not pass.
    """
    if as_json:
        typer.echo(job.model_dump_json(indent=2))
    elif job.status == "succeeded":
        print_result(job, verbose=verbose)
    if isinstance(job.result, VerifyResult) and not job.result.passed:
        found = len(job.result.differences)
        noun = "difference" if found == 1 else "differences"
        complain(open_console(stderr=True), f"The check did not pass: {found} {noun}.")
        raise typer.Exit(EXIT_FAILED)
    if job.status == "failed":
        message = f"{job.error.message} [{job.error.code}]" if job.error else "The job failed."
        complain(open_console(stderr=True), message, job.error.hint if job.error else "")
        raise typer.Exit(EXIT_FAILED)
    if job.status == "canceled":
        note("canceled", style="yellow")
        raise typer.Exit(EXIT_CANCELED)
