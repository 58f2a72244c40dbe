"""Submission of a job by a command: show its progress and result, and exit with its outcome."""

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import typer

from graftwerk.client import Client
from graftwerk.display import complain, note, open_console, print_result, warn
from graftwerk.errors import ApiError
from graftwerk.interruption import interruptible
from graftwerk.job_handle import JobHandle
from graftwerk.model_results import VerifyResult
from graftwerk.models import Job, JsonObject
from graftwerk.options import Connection, Submission, given
from graftwerk.progress_display import progress_view
from graftwerk.quantities import counted
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


def follow_all(
    client: Client,
    jobs: Sequence[Job],
    *,
    titles: Mapping[str, str] = MappingProxyType({}),
    with_new: bool = False,
) -> list[Job]:
    """Returns the ended jobs, in their order; their progress is shown on stderr. Ctrl-C asks as for one job.

    Args:
        titles: names of the jobs by id, in place of their own titles.
        with_new: follows also the jobs that are submitted meanwhile.

    Raises:
        typer.Exit: the person has detached.
    """
    group = client.group(jobs, with_new=with_new)

    def wait() -> list[Job]:
        with progress_view(open_console(stderr=True), titles) as view:
            for job in group.changes():
                view.show(job)
        return list(group.jobs.values())

    def cancel() -> None:
        for job in reversed(group.unfinished):
            cancel_if_running(client.job(job.id))

    ended = interruptible(wait, cancel, f"the {counted(len(group.unfinished), 'job')}")
    if ended is None:
        note("Detached; the jobs continue. Follow them with `graftwerk jobs watch`.")
        raise typer.Exit(EXIT_CANCELED)
    return ended


def finish(job: Job, *, as_json: bool, verbose: bool = False) -> None:
    """Prints an ended job's result, with `verbose` in all details, or its error.

    Raises:
        typer.Exit: the job failed, was canceled, or is a verification that did not pass.
    """
    if as_json:
        typer.echo(job.model_dump_json(indent=2))
    if code := report(job, quiet=as_json, verbose=verbose):
        raise typer.Exit(code)


def finish_all(
    jobs: Sequence[Job],
    *,
    as_json: bool,
    verbose: bool = False,
    titles: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Prints ended jobs as `finish` does, as JSON in one list.

    Args:
        titles: names of the jobs by id for errors, in place of their own titles.

    Raises:
        typer.Exit: with the code of the first job that has not succeeded.
    """
    if as_json:
        typer.echo(json.dumps([job.model_dump(mode="json") for job in jobs], indent=2, ensure_ascii=False))
    codes = [
        report(
            job,
            quiet=as_json,
            verbose=verbose,
            title=f"{titles.get(job.id, job.title)}: ",
            is_last=job is jobs[-1],
        )
        for job in jobs
    ]
    if code := next(filter(None, codes), 0):
        raise typer.Exit(code)


def report(job: Job, *, quiet: bool, verbose: bool, title: str = "", is_last: bool = True) -> int:
    """Prints an ended job's result, unless `quiet`, or its error, and returns the exit code.

    Args:
        title: beginning of the error, where there are several jobs.
        is_last: the result names the command that comes next.
    """
    if job.status == "succeeded" and not quiet:
        print_result(job, verbose=verbose, with_next=is_last)
    if isinstance(job.result, VerifyResult) and not job.result.passed:
        found = counted(len(job.result.differences), "difference")
        complain(open_console(stderr=True), f"{title}The check did not pass: {found}.")
        return EXIT_FAILED
    if job.status == "failed":
        message = f"{job.error.message} [{job.error.code}]" if job.error else "The job failed."
        complain(open_console(stderr=True), f"{title}{message}", job.error.hint if job.error else "")
        return EXIT_FAILED
    if job.status == "canceled":
        note(f"{title}canceled", style="yellow")
        return EXIT_CANCELED
    return 0
