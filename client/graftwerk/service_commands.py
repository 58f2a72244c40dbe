"""`graftwerk serve` and `graftwerk demo`: the service on this machine; `graftwerk doctor`: checks of a service."""

from pathlib import Path
from typing import Annotated

import typer

from graftwerk.option_bundles import expanded
from graftwerk.options import Connection


def serve(
    host: Annotated[str, typer.Option(envvar="GRAFTWERK_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(envvar="GRAFTWERK_PORT", help="Port of the API; 0 takes a free one.", min=0, max=65535),
    ] = 8000,
    data_dir: Annotated[Path, typer.Option(help="Folder for Redis, logs and (by default) models.")] = Path(
        "var"
    ),
    models_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="GRAFTWERK_MODELS_DIR", help="The model volume. [default: models in the data folder]"
        ),
    ] = None,
) -> None:
    """Run the service on this machine: Redis (unless GRAFTWERK_REDIS_URL is set), API and workers."""
    from graftwerk.serve import serve as run

    run(host, port, data_dir, models_dir)


def demo(
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the miniature. [default: the one of the checkout]",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Import, convert, merge and query a miniature model with a service of its own; removes everything it made."""
    from graftwerk.demo import demo as run

    run(examples)


@expanded
def doctor(
    connection: Connection,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON.")] = False,
) -> None:
    """Check a service and the way to it: Redis, volume, workers, devices, clocks, versions."""
    from graftwerk.doctor_report import run_doctor

    run_doctor(connection.url, connection.api_key, as_json=as_json)
