"""Run of a chain: local files are uploaded, all jobs are submitted, then followed together."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from graftwerk.chain_file import Step, read_chain
from graftwerk.client import Client
from graftwerk.display import note, open_console, print_line, warn
from graftwerk.errors import ApiError, ClientError, UnreachableError
from graftwerk.local_files import list_local
from graftwerk.local_import import require_free, stoppable
from graftwerk.models import Job, JsonObject
from graftwerk.options import ChainSubmission, Connection
from graftwerk.protocol import PAUSE_SECONDS, is_temporary
from graftwerk.quantities import counted
from graftwerk.submission import cancel_if_running, finish_all, follow_all
from graftwerk.tables import plan_view
from graftwerk.upload_memory import UploadMemory

MAX_ATTEMPTS = 5
"""Submissions of one job while the service does not respond; they carry the same id and are one job."""


def run_chain(connection: Connection, submission: ChainSubmission, file: Path) -> None:
    """Submits the jobs of a file and follows them to their end, or shows their plans.

    Raises:
        UsageError: the file is not a valid chain; nothing was submitted.
        ApiError: the service refuses a job; those submitted before it were canceled.
        typer.Exit: with the code of the first job that has not succeeded.
    """
    steps = read_chain(file)
    with connection.open() as client:
        if submission.dry_run:
            show_plans(plans_of(client, steps), as_json=submission.as_json)
            return
        jobs = submit_all(client, steps, uploaded(client, steps))
        if submission.no_wait:
            show_submitted(steps, jobs, as_json=submission.as_json)
            return
        titles = {job.id: f"{step.name}: {job.title}" for step, job in zip(steps, jobs, strict=True)}
        ended = follow_all(client, jobs, titles=titles)
    finish_all(ended, as_json=submission.as_json, verbose=submission.verbose, titles=titles)


def plans_of(client: Client, steps: Sequence[Step]) -> list[JsonObject]:
    """Returns the plan of each job whose inputs are there; null for those that wait for another or for an upload."""
    found = []
    for step in steps:
        with _named(step):
            can_plan = not step.after and step.upload is None
            plan = client.plan(step.request) if can_plan else None
        found.append({"name": step.name, "after": list(step.after), "request": step.request, "plan": plan})
    return found


def show_plans(plans: Sequence[JsonObject], *, as_json: bool) -> None:
    """Prints the plans of a chain."""
    if as_json:
        typer.echo(json.dumps(plans, indent=2, ensure_ascii=False))
        return
    console = open_console()
    for entry in plans:
        after = f" after {', '.join(entry['after'])}" if entry["after"] else ""
        print_line(console, f"{entry['name']}: {entry['request']['kind']}{after}", style="bold")
        if entry["plan"] is None:
            print_line(console, "  planned when its inputs are on the volume", style="dim")
        else:
            console.print(plan_view(entry["plan"]))


def uploaded(client: Client, steps: Sequence[Step]) -> list[JsonObject]:
    """Returns the requests, with uploads in place of local sources."""
    for step in steps:
        if step.upload is not None:
            with _named(step):
                require_free(client, str(step.request.get("target")))
    return [_with_upload(client, step, steps[number + 1 :]) for number, step in enumerate(steps)]


def _with_upload(client: Client, step: Step, later: Sequence[Step]) -> JsonObject:
    if step.upload is None:
        return step.request
    with stoppable(), _named(step):
        ids = client.upload(step.upload, str(step.request.get("target")), progress=True)
    if any(other.upload == step.upload for other in later):
        # an import takes its uploads away: the next one needs uploads of its own
        memory = UploadMemory(client.url)
        for file in list_local(step.upload):
            memory.forget(file)
    return {**step.request, "source": {"upload": ids}}


def submit_all(client: Client, steps: Sequence[Step], requests: Sequence[JsonObject]) -> list[Job]:
    """Submits the jobs, each after those that it waits for, and returns them in their order.

    Raises:
        ClientError: the service refuses one, or does not respond; those submitted before it were canceled.
    """
    ids = {step.name: str(uuid.uuid4()) for step in steps}
    submitted: list[Job] = []
    try:
        for step, request in zip(steps, requests, strict=True):
            after = {"after": [ids[name] for name in step.after]} if step.after else {}
            with _named(step):
                submitted.append(_submit(client, ids[step.name], request | after))
    except (ClientError, KeyboardInterrupt):
        for job in reversed(submitted):
            cancel_if_running(client.job(job.id))
        if submitted:
            note(f"The {counted(len(submitted), 'job')} submitted before it were canceled.", style="yellow")
        raise
    for job in submitted:
        for warning in job.warnings:
            warn(f"{job.title}: {warning}")
    return submitted


def _submit(client: Client, job_id: str, request: JsonObject) -> Job:
    for _ in range(MAX_ATTEMPTS - 1):
        try:
            return client.put(job_id, request).job
        except (ApiError, UnreachableError) as error:
            if not is_temporary(error):
                raise
            client.pause(PAUSE_SECONDS)
    return client.put(job_id, request).job


@contextmanager
def _named(step: Step) -> Iterator[None]:
    """Adds the name of the job to an error."""
    try:
        yield
    except ClientError as error:
        error.detail = f"{step.name} (line {step.line}): {error.detail}"
        raise


def show_submitted(steps: Sequence[Step], jobs: Sequence[Job], *, as_json: bool) -> None:
    """Prints the jobs of a chain that is not waited for: name and id of each, or all of them as JSON."""
    if as_json:
        typer.echo(json.dumps([job.model_dump(mode="json") for job in jobs], indent=2, ensure_ascii=False))
        return
    for step, job in zip(steps, jobs, strict=True):
        typer.echo(f"{job.id}  {step.name}")
