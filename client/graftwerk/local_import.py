"""Import of local files: they are uploaded, then imported by a job."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from graftwerk.client import Client
from graftwerk.display import note
from graftwerk.errors import ApiError, UsageError
from graftwerk.local_files import list_local
from graftwerk.options import Connection, Submission
from graftwerk.request_parts import JsonObject
from graftwerk.submission import EXIT_CANCELED, submit_and_follow


@contextmanager
def stoppable() -> Iterator[None]:
    """Ends the command on Ctrl-C with a sentence.

    Raises:
        typer.Exit: the person has stopped the transfer.
    """
    try:
        yield
    except KeyboardInterrupt:
        note("Stopped; the same command continues where it ended.", style="yellow")
        raise typer.Exit(EXIT_CANCELED) from None


def push_and_import(connection: Connection, submission: Submission, source: Path, fields: JsonObject) -> None:
    """Uploads local files and runs their import with these further fields."""
    if submission.dry_run:
        raise UsageError("--dry-run would have to upload the files first.", "Leave it out.")
    list_local(source)  # a wrong path is reported before the service is reached
    with connection.open() as client:
        require_free(client, fields["target"])
        with stoppable():
            ids = client.upload(source, fields["target"], progress=True)
    submit_and_follow(connection, submission, {"kind": "import", "source": {"upload": ids}, **fields})


def require_free(client: Client, name: str) -> None:
    """Raises UsageError if a model has this name, before anything is uploaded."""
    try:
        client.model(name)
    except ApiError as error:
        if error.status == 404:
            return
        raise
    raise UsageError(f"A model named {name!r} exists already.", "Choose another name, or remove that model.")
