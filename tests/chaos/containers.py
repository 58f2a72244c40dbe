"""The service as containers of a compose project. Needs root: the driver signals and finds processes of containers on the host."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from graftwerk.local_service import free_port

from tests.chaos.system import System
from tests.chaos.volume import Volume

ROOT = Path(__file__).parents[2]
PROJECT = "graftwerk-chaos"
FILES = ("docker-compose.yml", "tests/chaos/compose.yml")
COMMAND_SECONDS, START_SECONDS = 120.0, 900.0
SERVICES = {queue: f"worker-{queue}" for queue in ("convert", "merge", "generate")}
"""Services whose names are not that of their role."""


class ContainerSystem(System):
    """Redis, API, three workers and the janitor in containers that the engine restarts."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        api_port, self.redis_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{api_port}"
        self.missing["clock"] = "the images do not preload the library that steps it"
        self.missing["delay"] = "no proxy is between the containers"
        self._paused_containers: list[str] = []
        # the images' user writes to the volume
        for folder in (volume.root, volume.root / "incoming"):
            folder.chmod(0o777)
        self._environment = {
            **os.environ,
            "GRAFTWERK_PORT": str(api_port), "GRAFTWERK_CHAOS_REDIS_PORT": str(self.redis_port),
            "GRAFTWERK_CHAOS_MODELS": str(volume.root),
            "GRAFTWERK_TORCH_THREADS": "1", "GRAFTWERK_UPLOAD_RETENTION_SECONDS": "60",
        }  # fmt: skip

    @contextmanager
    def running(self) -> Iterator[None]:
        """Builds and starts the containers and waits until they are healthy; removes them afterwards."""
        self._compose("down", "--volumes", "--remove-orphans", "--timeout", "5")
        try:
            self._compose("build", "--quiet", seconds=START_SECONDS)
            self._compose("up", "--detach", seconds=START_SECONDS)
            self.wait_until_ready()
            yield
        finally:
            self.resume("")
            self._compose("down", "--volumes", "--remove-orphans", "--timeout", "20")

    def main_process(self, role: str) -> psutil.Process:
        """Returns the first process of a role's container: the engine restarts it after its death, unlike after `docker kill`."""
        pid = int(_run("docker", "inspect", "--format", "{{.State.Pid}}", self._container(role)))
        return psutil.Process(pid) if pid else _none(role)

    def parent_of_jobs(self, role: str) -> psutil.Process:
        """Returns the service's process, the child of the container's init."""
        children = self.main_process(role).children()
        return children[0] if children else _none(role)

    def processes(self) -> list[psutil.Process]:
        """Returns the first process of each container of the project."""
        label = f"label=com.docker.compose.project={PROJECT}"
        containers = _run("docker", "ps", "--quiet", "--filter", label).split()
        pids = [int(_run("docker", "inspect", "--format", "{{.State.Pid}}", name)) for name in containers]
        return [psutil.Process(pid) for pid in pids if pid]

    def pause(self, role: str) -> None:
        """Freezes a role's container."""
        container = self._container(role)
        _run("docker", "pause", container)
        self._paused_containers.append(container)

    def resume(self, role: str) -> None:
        """Lets frozen containers and stopped processes go on."""
        super().resume(role)
        while self._paused_containers:
            with suppress(subprocess.CalledProcessError):
                _run("docker", "unpause", self._paused_containers.pop())

    def cut(self, role: str) -> None:
        """Takes a role's container off the network."""
        _run("docker", "network", "disconnect", f"{PROJECT}_default", self._container(role))

    def swallow(self, role: str) -> None:
        """Takes a role's container off the network: its packets vanish, and no connection is reset."""
        self.cut(role)

    def delay(self, role: str, seconds: float) -> None:
        """Is missing, see `missing`."""
        raise NotImplementedError

    def reconnect(self, role: str) -> None:
        """Connects a role's container again, under the name of its service."""
        service = SERVICES.get(role, role)
        _run("docker", "network", "connect", "--alias", service, f"{PROJECT}_default", self._container(role))

    def _container(self, role: str) -> str:
        return f"{PROJECT}-{SERVICES.get(role, role)}-1"

    def _compose(self, *words: str, seconds: float = COMMAND_SECONDS) -> None:
        files = [word for name in FILES for word in ("-f", name)]
        command = ["docker", "compose", "-p", PROJECT, *files, *words]
        subprocess.run(command, cwd=ROOT, env=self._environment, check=True, timeout=seconds)


def _none(role: str) -> psutil.Process:
    raise psutil.NoSuchProcess(0, role)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMMAND_SECONDS)
    return done.stdout.strip()
