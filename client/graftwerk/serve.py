"""`graftwerk serve`: the whole service on one machine, without Docker and without an installed Redis."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from graftwerk.display import open_console
from graftwerk.errors import UsageError
from graftwerk.local_service import LOOPBACK_HOSTS, LocalService, free_port
from graftwerk.supervisor_config import LocalServiceError, ServiceLocation


def serve(host: str, port: int, data_dir: Path, models_dir: Path | None) -> None:
    """Runs Redis (unless GRAFTWERK_REDIS_URL is set), the API and the workers until Ctrl-C or SIGTERM.

    Args:
        port: port of the API; 0 takes a free one.
        data_dir: folder for Redis and logs.
        models_dir: the model volume; None is `models` in the data folder.
    """
    require_keys_beyond_loopback(host)
    data_dir = data_dir.resolve()
    location = ServiceLocation(
        data_dir=data_dir,
        models_dir=(models_dir or data_dir / "models").resolve(),
        host=host,
        port=port or free_port(),
        own_redis=not {"GRAFTWERK_REDIS_URL", "GRAFTWERK_REDIS_URL_FILE"} & os.environ.keys(),
    )
    console = open_console()
    try:
        with terminable(), LocalService(location, os.environ) as service:
            start(service, console)
            console.print(f"Graftwerk is ready at [bold]{location.url}[/]  (Ctrl-C stops it)")
            console.print(
                f"models {location.models_dir}\nlogs   {data_dir / 'logs'}", style="dim", soft_wrap=True
            )
            service.wait()
            raise LocalServiceError("supervisord was killed, and the service with it.", "Start it again.")
    except KeyboardInterrupt:
        console.print("stopped", style="dim")


def start(service: LocalService, console: Console) -> None:
    """Waits until the service is ready and prints each part as it becomes ready."""
    parts = "Redis, the API and the workers" if service.location.own_redis else "the API and the workers"
    console.print(f"Starting {parts} …")
    service.wait_until_ready(lambda line: console.print(f"  {line}", style="dim", markup=False))


def require_keys_beyond_loopback(host: str) -> None:
    """Refuses to listen for other machines without API keys.

    Raises:
        UsageError: the host is not a loopback address and no keys are set.
    """
    if host not in LOOPBACK_HOSTS and "GRAFTWERK_API_KEYS_FILE" not in os.environ:
        raise UsageError(
            f"Other machines can reach {host}, and no API keys are set.",
            "Set GRAFTWERK_API_KEYS_FILE, or leave --host at 127.0.0.1.",
        )


@contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM act like Ctrl-C inside the block, also in a script's background."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
