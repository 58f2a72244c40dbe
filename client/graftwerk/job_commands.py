"""`graftwerk jobs`: see jobs, follow them, cancel them, try them again."""

import json
from typing import Annotated

import typer

from graftwerk.display import jobs_view, open_console
from graftwerk.options import Connection, expanded
from graftwerk.submission import attend, finish

app = typer.Typer(help="List jobs; watch, cancel, retry them, read their logs.")

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and only that.")]


@app.callback(invoke_without_command=True)
@expanded
def list_jobs(
    context: typer.Context,
    connection: Connection,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind.", show_default=False)] = None,
    status: Annotated[str | None, typer.Option(help="Only jobs that stand so.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1, max=200)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first; or watch, cancel, retry one, or read its log."""
    if context.invoked_subcommand is not None:
        return
    with connection.open() as graftwerk:
        jobs = graftwerk.jobs(kind=kind, status=status, limit=limit)
    if as_json:
        typer.echo(json.dumps([job.model_dump(mode="json") for job in jobs], indent=2, ensure_ascii=False))
    elif jobs:
        open_console().print(jobs_view(jobs))
    else:
        open_console(stderr=True).print("no jobs")


@app.command()
@expanded
def watch(job_id: JobId, connection: Connection, as_json: AsJson = False) -> None:
    """Follow a job to its end; the exit code is its outcome."""
    with connection.open() as graftwerk:
        job = attend(graftwerk, graftwerk.job(job_id))
    finish(job, as_json=as_json)


@app.command()
@expanded
def cancel(job_id: JobId, connection: Connection) -> None:
    """End a job that waits or runs."""
    with connection.open() as graftwerk:
        job = graftwerk.cancel(job_id)
    ended = "canceled" if job.ended else "will end in a moment"
    open_console(stderr=True).print(f"{job.title}: {ended}", markup=False)


@app.command()
@expanded
def retry(
    job_id: JobId,
    connection: Connection,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit and return at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit an ended job's request once more, as a new job."""
    with connection.open() as graftwerk:
        job = graftwerk.retry(job_id)
        if no_wait:
            typer.echo(job.model_dump_json(indent=2) if as_json else job.id)
            return
        job = attend(graftwerk, job)
    finish(job, as_json=as_json)


@app.command()
@expanded
def log(job_id: JobId, connection: Connection) -> None:
    """Print the lines that a job has written."""
    with connection.open() as graftwerk:
        typer.echo(graftwerk.log(job_id), nl=False)
