"""`graftwerk jobs`: list, watch, cancel and retry jobs, read their logs."""

import json
from typing import Annotated

import typer

from graftwerk.completion import all_names, job_ids, unfinished_job_ids
from graftwerk.option_bundles import expanded
from graftwerk.options import Connection

app = typer.Typer(help="List jobs; watch, cancel, retry them, read their logs.")

JobId = Annotated[
    str, typer.Argument(metavar="ID", help="The job's id.", show_default=False, autocompletion=job_ids)
]
UnfinishedJobIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ID…",
        help="Ids of jobs. Default: all unfinished ones.",
        show_default=False,
        autocompletion=unfinished_job_ids,
    ),
]
UnfinishedJobId = Annotated[
    str,
    typer.Argument(metavar="ID", help="The job's id.", show_default=False, autocompletion=unfinished_job_ids),
]
MOST_JOBS = 1000
"""Largest number of jobs in a list of the API."""

AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print all details of the result.")]


@app.callback(invoke_without_command=True)
@expanded
def list_jobs(
    context: typer.Context,
    connection: Connection,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.", show_default=False)] = None,
    status: Annotated[
        str | None, typer.Option(help="Only jobs with this status.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Only jobs that read or make this model.", show_default=False, autocompletion=all_names
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="Largest number of jobs, newest first.", min=1, max=200)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    if context.invoked_subcommand is not None:
        return
    from graftwerk.display import note, open_console
    from graftwerk.lists import JobsView

    with connection.open() as client:
        jobs = client.jobs(kind=kind, status=status, model=model, limit=limit)
    if as_json:
        typer.echo(json.dumps([job.model_dump(mode="json") for job in jobs], indent=2, ensure_ascii=False))
    elif jobs:
        open_console().print(JobsView(jobs))
    else:
        note("No jobs.")


@app.command()
@expanded
def watch(
    connection: Connection,
    job_ids: UnfinishedJobIds = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Follow jobs until they have ended; without an id all unfinished ones. The exit code is the first failure's."""
    from graftwerk.display import note
    from graftwerk.submission import finish, finish_all, follow, follow_all

    with connection.open() as client:
        if job_ids and len(job_ids) == 1:
            finish(follow(client.job(job_ids[0])), as_json=as_json, verbose=verbose)
            return
        if job_ids:
            jobs = [client.job(job_id).refresh() for job_id in dict.fromkeys(job_ids)]
        else:
            jobs = client.jobs(status="running", limit=MOST_JOBS)[::-1]
            jobs += client.jobs(status="queued", limit=MOST_JOBS)[::-1]
        if not jobs and not as_json:
            note("No unfinished jobs.")
        ended = follow_all(client, jobs, with_new=not job_ids)
    finish_all(ended, as_json=as_json, verbose=verbose)


@app.command()
@expanded
def cancel(job_id: UnfinishedJobId, connection: Connection) -> None:
    """Cancel a queued or running job."""
    from graftwerk.display import note

    with connection.open() as client:
        job = client.job(job_id).cancel()
    outcome = "canceled" if job.ended else "will end in a moment"
    note(f"{job.title}: {outcome}")


@app.command()
@expanded
def retry(
    job_id: JobId,
    connection: Connection,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit and return immediately.")] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Submit the request of an ended job again, as a new job."""
    from graftwerk.submission import finish, follow, show_submitted

    with connection.open() as client:
        handle = client.job(job_id).retry()
        if no_wait:
            show_submitted(handle.job, as_json=as_json)
            return
        job = follow(handle)
    finish(job, as_json=as_json, verbose=verbose)


@app.command()
@expanded
def deliveries(
    job_id: JobId,
    connection: Connection,
    redeliver: Annotated[
        str | None, typer.Option(help="Send the message of this id again.", show_default=False)
    ] = None,
) -> None:
    """Print the messages to a job's webhook, with their attempts, as JSON."""
    with connection.open() as client:
        job = client.job(job_id)
        found = job.deliveries() if redeliver is None else [job.redeliver(redeliver)]
    typer.echo(json.dumps([delivery.model_dump(mode="json") for delivery in found], indent=2))


@app.command()
@expanded
def log(job_id: JobId, connection: Connection) -> None:
    """Print the log of a job."""
    with connection.open() as client:
        typer.echo(client.job(job_id).log(), nl=False)
