"""`graftwerk serve`: the whole service on one machine, with no Docker and no Redis installed."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from graftwerk.display import open_console
from graftwerk.local_service import LOOPBACK_HOSTS, Place, Stack, StackError, free_port
from graftwerk.models import UsageError


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
    """Run everything on this machine: Redis (unless GRAFTWERK_REDIS_URL is set), API and workers."""
    refuse_open_door(host)
    data_dir = data_dir.resolve()
    place = Place(
        data_dir=data_dir,
        models_dir=(models_dir or data_dir / "models").resolve(),
        host=host,
        port=port or free_port(),
        own_redis=not {"GRAFTWERK_REDIS_URL", "GRAFTWERK_REDIS_URL_FILE"} & os.environ.keys(),
    )
    console = open_console()
    try:
        with terminable(), Stack(place, os.environ) as stack:
            with open_console(stderr=True).status("starting"):
                stack.wait_until_ready()
            console.print(f"Graftwerk is ready at [bold]{place.url}[/]  (Ctrl-C ends it)")
            console.print(
                f"models {place.models_dir}\nlogs   {data_dir / 'logs'}", style="dim", soft_wrap=True
            )
            stack.wait()
            raise StackError("supervisord was ended, and the service with it", "Start it again.")
    except KeyboardInterrupt:
        console.print("stopped", style="dim")


def refuse_open_door(host: str) -> None:
    """Refuses to listen for other machines while anybody may do anything."""
    if host not in LOOPBACK_HOSTS and "GRAFTWERK_API_KEYS_FILE" not in os.environ:
        raise UsageError(
            f"{host} is open to other machines, and no keys are set",
            "Set GRAFTWERK_API_KEYS_FILE, or leave --host at 127.0.0.1.",
        )


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM is as good as a Ctrl-C in here, and that works in a script's background too: what was started is ended."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
