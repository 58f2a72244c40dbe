"""The API as real processes: gunicorn with our settings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
from graftwerk.local_service import free_port
from graftwerk.supervisor_config import api_arguments

from tests.redis_server import until

ROOT = Path(__file__).parents[2]


class ApiServer(NamedTuple):
    """A running API: gunicorn's master, its port and its log."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def api_server(folder: Path, **settings: str) -> Iterator[ApiServer]:
    """Runs the API with these settings (without their prefix), by default without a Redis."""
    port = free_port()
    own = {
        "PORT": str(port),
        "MODELS_DIR": str(folder / "models"),
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0",
        **settings,
    }
    env = os.environ | {f"GRAFTWERK_{name}": value for name, value in own.items()}
    log = folder / "api.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *api_arguments()], env=env, cwd=ROOT, stdout=output, stderr=output
        )
    server = ApiServer(process, port, log)
    try:
        until(lambda: is_up(server.url), 60)
        yield server
    finally:
        process.terminate()
        process.wait(20)


def is_up(url: str) -> bool:
    """Returns True if an API at this address is alive."""
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False
