"""What the commands do with a job: submit it, show how it goes on, and end with its outcome as exit code."""

import json
import sys
from collections.abc import Callable

import typer
from rich.console import Console
from rich.prompt import Prompt

from graftwerk.display import complain, open_console, plan_view, print_result, watching
from graftwerk.http import Graftwerk
from graftwerk.models import ApiError, Job, JsonObject
from graftwerk.options import Connection, Submission, given

EXIT_FAILED = 1
EXIT_CANCELED = 130


def carry_out(
    connection: Connection,
    submission: Submission,
    request: JsonObject,
    *,
    save: Callable[[Graftwerk, Job], None] | None = None,
) -> None:
    """Submits a job and sees it through, or shows its plan.

    Args:
        save: called with a job that has succeeded, before its result is printed.

    Raises:
        typer.Exit: with the job's outcome as exit code.
    """
    request = request | given(after=submission.after)
    with connection.open() as graftwerk:
        if submission.dry_run:
            show_plan(graftwerk.plan(request), as_json=submission.as_json)
            return
        job = graftwerk.submit(request)
        if submission.no_wait:
            typer.echo(job.model_dump_json(indent=2) if submission.as_json else job.id)
            return
        job = attend(graftwerk, job)
        if save is not None and job.status == "succeeded":
            save(graftwerk, job)
    finish(job, as_json=submission.as_json)


def show_plan(plan: JsonObject, *, as_json: bool) -> None:
    """Prints a dry run's plan."""
    if as_json:
        typer.echo(json.dumps(plan, indent=2, ensure_ascii=False))
    else:
        open_console().print(plan_view(plan))


def attend(graftwerk: Graftwerk, job: Job) -> Job:
    """The job when it has ended; its progress is shown on stderr. Ctrl-C asks "cancel or detach"."""
    console = open_console(stderr=True)
    console.print(f"job {job.id}", style="dim")
    while True:
        try:
            with watching(console) as view:
                view.show(job)
                for latest in graftwerk.follow(job.id):
                    view.show(latest)
            return latest
        except KeyboardInterrupt:
            if not wants_cancel(console):
                console.print(f"detached: the job goes on, see `graftwerk jobs watch {job.id}`")
                raise typer.Exit(EXIT_CANCELED) from None
            cancel_if_possible(graftwerk, job)


def wants_cancel(console: Console) -> bool:
    """Asks what the Ctrl-C meant; without a terminal to ask at, it does not end the job."""
    if not sys.stdin.isatty():
        return False
    try:
        return Prompt.ask("cancel or detach", choices=["cancel", "detach"], console=console) == "cancel"
    except (KeyboardInterrupt, EOFError):
        return False


def cancel_if_possible(graftwerk: Graftwerk, job: Job) -> None:
    """Cancels a job that may have ended in this very moment."""
    try:
        graftwerk.cancel(job.id)
    except ApiError as error:
        if error.status != 409:
            raise


def finish(job: Job, *, as_json: bool) -> None:
    """Prints an ended job's result or error.

    Raises:
        typer.Exit: unless the job has succeeded.
    """
    if as_json:
        typer.echo(job.model_dump_json(indent=2))
    elif job.status == "succeeded":
        print_result(open_console(), job)
    if job.result is not None and job.result.get("passed") is False:
        differences = len(job.result.get("differences", []))
        complain(open_console(stderr=True), f"the check did not pass: {differences} differences", "")
        raise typer.Exit(EXIT_FAILED)
    if job.status == "failed":
        message = f"{job.error.message} [{job.error.code}]" if job.error else "the job failed"
        complain(open_console(stderr=True), message, job.error.hint if job.error else "")
        raise typer.Exit(EXIT_FAILED)
    if job.status == "canceled":
        open_console(stderr=True).print("canceled", style="yellow")
        raise typer.Exit(EXIT_CANCELED)
