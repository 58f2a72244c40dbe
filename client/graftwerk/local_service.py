"""The whole service on one machine: Redis, the API and the workers as processes under supervisord.

supervisord runs in the data folder and in a session of its own, so that a terminal's Ctrl-C reaches only the command.
Every process ends when the process that started it does: after a `kill -9` of the command nothing keeps running.
"""

import fcntl
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple, Self

import httpx

from graftwerk.service_distribution import require_service
from graftwerk.supervisor_config import (
    CONFIG_FILE,
    LOG_FILE,
    LocalServiceError,
    ServiceLocation,
    environment,
    write_config,
)

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")

START_SECONDS = 300.0
POLL_SECONDS = 0.2
STOP_SECONDS = 25.0
MAX_FAILED_STARTS = 3
"""A process that has ended this often before the service was ready is considered unable to start."""

ERROR_FILE = "logs/supervisord.stderr.log"


class LocalService:
    """A running service. As a context manager it starts on entering and has stopped after leaving.

    Args:
        location: folders and address; its `port` is not 0 (see `free_port`).
        environ: the environment of all processes, to which the location's settings are added.
    """

    def __init__(self, location: ServiceLocation, environ: Mapping[str, str]) -> None:
        self.location = location
        self._environ = environ
        self._lock: IO[bytes] | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts all processes; `wait_until_ready` waits for them.

        Raises:
            ServiceNotInstalledError: the service's distribution is not installed.
            LocalServiceError: the data folder or the port is in use.
        """
        require_service()
        location = self.location
        for folder in (
            location.models_dir / "incoming",
            location.data_dir / "redis",
            location.data_dir / "logs",
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(location.data_dir)
        check_port(location.host, location.port)
        redis_port = free_port() if location.own_redis else None
        write_config(location, redis_port)
        (location.data_dir / LOG_FILE).unlink(missing_ok=True)
        self._supervisor = self._start_supervisor(
            self._lock, environment(location, redis_port, self._environ)
        )

    def _start_supervisor(self, lock_file: IO[bytes], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        supervisord = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", CONFIG_FILE]
        with (self.location.data_dir / ERROR_FILE).open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "graftwerk.parent_death", "--signal", "TERM", *supervisord],
                cwd=self.location.data_dir,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                # while supervisord lives, the data folder is in use, even if the command was killed
                pass_fds=[lock_file.fileno()],
            )

    def wait_until_ready(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Returns when Redis, the volume and every kind of worker respond.

        Args:
            report: called with a line for each part as it becomes ready.

        Raises:
            LocalServiceError: a process does not start; the message contains the end of its log.
        """
        started = time.monotonic()
        reported: set[str] = set()
        while True:
            readiness = read_readiness(self.location.url)
            seconds = time.monotonic() - started
            for part in readiness.ready_parts:
                if part not in reported:
                    reported.add(part)
                    report(f"{part} ready after {seconds:.0f} s")
            if readiness.is_ready:
                return
            self._check_start(late=seconds > START_SECONDS)
            time.sleep(POLL_SECONDS)

    def _check_start(self, *, late: bool) -> None:
        assert self._supervisor is not None
        data_dir = self.location.data_dir
        if self._supervisor.poll() is not None:
            raise LocalServiceError("supervisord has ended." + tail(data_dir / ERROR_FILE))
        for name in failing_programs(data_dir / LOG_FILE):
            raise LocalServiceError(
                f"The process {name} does not start." + tail(data_dir / f"logs/{name}.log")
            )
        if late:
            log = data_dir / "logs/api.log"
            raise LocalServiceError(f"The service is not ready after {START_SECONDS:.0f} s." + tail(log))

    def wait(self) -> None:
        """Returns when supervisord has ended, which it does only when it is killed."""
        assert self._supervisor is not None
        self._supervisor.wait()

    def stop(self) -> None:
        """Ends all processes, Redis last. A second Ctrl-C kills them at once."""
        if self._supervisor is not None:
            self._supervisor.send_signal(signal.SIGTERM)
            try:
                self._supervisor.wait(STOP_SECONDS)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._supervisor.kill()
                self._supervisor.wait()
        if self._lock is not None:
            self._lock.close()


# ---- readiness, ports, locks, logs --------------------------------------------------------------------


class Readiness(NamedTuple):
    """Response of `/readyz`: the parts that are ready, and True once all are."""

    is_ready: bool
    ready_parts: list[str]


def read_readiness(url: str) -> Readiness:
    """Returns the readiness of a service; nothing is ready while it does not respond."""
    try:
        response = httpx.get(f"{url}/readyz", timeout=5, trust_env=False)
        checks = response.json()["checks"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Readiness(False, [])
    ready = [name for name, outcome in checks.items() if outcome == "ok"]
    return Readiness(response.is_success, ["api", *ready])


def free_port() -> int:
    """Returns a free port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def check_port(host: str, port: int) -> None:
    """Checks that a process can listen on the address.

    Raises:
        LocalServiceError: the port is in use, or the address does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = "Choose another one with --port or GRAFTWERK_PORT; --port 0 takes a free one."
            raise LocalServiceError(
                f"The API cannot listen on {host}, port {port}: {error.strerror}.", hint
            ) from error


def lock(data_dir: Path) -> IO[bytes]:
    """Returns the locked file of a data folder; closing it releases the folder.

    Raises:
        LocalServiceError: another `graftwerk serve` holds the lock.
    """
    file = (data_dir / "serve.lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        hint = "Stop it, or choose another folder with --data-dir."
        raise LocalServiceError(f"Another `graftwerk serve` runs in {data_dir}.", hint) from error
    return file


def failing_programs(supervisor_log: Path) -> list[str]:
    """Returns the programs that have ended repeatedly according to supervisord's log."""
    if not supervisor_log.exists():
        return []
    lines = supervisor_log.read_text(encoding="utf-8", errors="replace").splitlines()
    ended = [line.split("exited: ")[1].split(" (")[0] for line in lines if "exited: " in line]
    return [name for name in dict.fromkeys(ended) if ended.count(name) >= MAX_FAILED_STARTS]


def tail(log: Path, lines: int = 15) -> str:
    """Returns the last lines of a log below its name, or "(empty)"."""
    content = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join([f" The end of {log}:", *(f"  {line}" for line in content[-lines:] or ["(empty)"])])
