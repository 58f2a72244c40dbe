"""`graftwerk push` and `graftwerk pull`, and the sources of `graftwerk import`."""

from pathlib import Path
from typing import Annotated

import typer

from graftwerk.arguments import parse_digests
from graftwerk.completion import all_names
from graftwerk.errors import UsageError
from graftwerk.import_source import HUB, VOLUME, default_target, is_local, parse_source
from graftwerk.job_run import run_job
from graftwerk.local_files import default_name
from graftwerk.option_bundles import expanded
from graftwerk.options import Connection, Submission, given
from graftwerk.quantities import counted


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
    from graftwerk.local_import import push_and_import

    target = name or default_name(str(source))
    push_and_import(connection, submission, source, given(target=target))


@expanded
def pull(
    name: Annotated[
        str, typer.Argument(help="Name of the model.", show_default=False, autocompletion=all_names)
    ],
    *,
    connection: Connection,
    into: Annotated[
        Path, typer.Option("--into", help="Folder in which the model's folder is made.")
    ] = Path(),
) -> None:
    """Download a model into a folder with its name, verified. Continues where it broke."""
    from graftwerk.display import note
    from graftwerk.local_import import stoppable

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
        from graftwerk.local_import import push_and_import

        push_and_import(connection, submission, _local(source), fields)
    else:
        run_job(connection, submission, {"kind": "import", "source": found, **fields})


def _local(source: str) -> Path:
    path = Path(source)
    if not path.exists():
        raise UsageError(
            f"There is no local file or folder {source!r}.",
            f"A path on the model volume begins with {VOLUME}, a model of the Hub with {HUB}.",
        )
    return path
