"""`graftwerk push` and `graftwerk pull`, and the sources of `graftwerk import`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from graftwerk.arguments import parse_digests
from graftwerk.client import Client
from graftwerk.display import note
from graftwerk.errors import ApiError, UsageError
from graftwerk.import_source import HUB, VOLUME, default_target, is_local, parse_source
from graftwerk.local_files import default_name, list_local
from graftwerk.models import JsonObject
from graftwerk.options import Connection, Submission, expanded, given
from graftwerk.quantities import counted
from graftwerk.submission import EXIT_CANCELED, run_job


@expanded
def push(
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A local folder, file or zip archive.", show_default=False),
    ],
    *,
    connection: Connection,
    submission: Submission,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of the new model. Default: that of the folder.", show_default=False
        ),
    ] = None,
) -> None:
    """Upload a local folder, file or zip archive and import it as a model. Continues where it broke."""
    target = name or default_name(str(source))
    push_and_import(connection, submission, source, given(target=target))


@expanded
def pull(
    name: Annotated[str, typer.Argument(help="Name of the model.", show_default=False)],
    *,
    connection: Connection,
    into: Annotated[
        Path, typer.Option("--into", help="Folder in which the model's folder is made.")
    ] = Path(),
) -> None:
    """Download a model into a folder with its name, verified. Continues where it broke."""
    with connection.open() as client, stoppable():
        pulled = client.pull(name, into, progress=True)
    typer.echo(pulled.folder)
    if pulled.unverified:
        listed = ", ".join(pulled.unverified[:5]) + (" …" if len(pulled.unverified) > 5 else "")
        files = counted(len(pulled.unverified), "file")
        note(f"{files} without digests checked by length alone: {listed}", style="dim")


@expanded
def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="incoming/…: a file, folder or zip on the volume; hub:org/name[@revision]: a model of the Hub; else a local path, which is uploaded.",
            show_default=False,
        ),
    ],
    *,
    connection: Connection,
    submission: Submission,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            help="Name of the new model. Default: the source's last name.",
            show_default=False,
        ),
    ] = None,
    files: Annotated[
        list[str],
        typer.Option(
            help="Of the Hub: files to take, such as '*Q4_K_M.gguf'. May be repeated.",
            metavar="PATTERN",
            show_default=False,
        ),
    ] = [],  # noqa: B006  (typer reads the default and copies it)
    is_zip: Annotated[
        bool, typer.Option("--zip", help="It is a zip archive on the volume, regardless of its name.")
    ] = False,
    sha256: Annotated[
        list[str],
        typer.Option(help="A digest to check. May be repeated.", metavar="PATH=HEX", show_default=False),
    ] = [],  # noqa: B006  (typer reads the default and copies it)
) -> None:
    """Import files as a model: from the volume, the Hub or this machine."""
    found = parse_source(source, files=files, is_zip=is_zip)
    fields = given(target=target or default_target(source), sha256=parse_digests(sha256))
    if is_local(source):
        push_and_import(connection, submission, _local(source), fields)
    else:
        run_job(connection, submission, {"kind": "import", "source": found, **fields})


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
        _require_free(client, fields["target"])
        with stoppable():
            ids = client.upload(source, fields["target"], progress=True)
    run_job(connection, submission, {"kind": "import", "source": {"upload": ids}, **fields})


def _require_free(client: Client, name: str) -> None:
    """Raises UsageError if a model has this name, before anything is uploaded."""
    try:
        client.model(name)
    except ApiError as error:
        if error.status == 404:
            return
        raise
    raise UsageError(f"A model named {name!r} exists already.", "Choose another name, or remove that model.")


def _local(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise UsageError(
            f"There is no local file or folder {source!r}.",
            f"A path on the model volume begins with {VOLUME}, a model of the Hub with {HUB}.",
        )
    return path
