"""The service under test as faults see it: its processes by role, its volume, and its addresses."""

import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
from graftwerk.local_service import read_readiness

from tests.chaos.volume import Volume

START_SECONDS = 300.0

ENGINE_WORDS = ("llama_cpp_program", "fake_vllm", "vllm.entrypoints")
"""Words of the commands of the engines' processes. The newest is the server, its keeper is older."""

ROLES = ("convert", "merge", "generate", "janitor", "api", "redis")


class System(ABC):
    """A running service whose processes this process may signal.

    Attributes:
        url: address of the API.
        redis_port: port of Redis on loopback that no fault of the network concerns.
        volume: the model volume.
        engine: setting of the engine that generates.
        missing: by part ("network", "disk", "clock"), the reason why its faults are left out.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.url = ""
        self.redis_port = 0
        self.engine = "auto"
        self.missing: dict[str, str] = {}
        if volume.missing is not None:
            self.missing["disk"] = volume.missing
        self._paused: list[psutil.Process] = []

    # ---- processes ------------------------------------------------------------------------------------

    @abstractmethod
    def main_process(self, role: str) -> psutil.Process:
        """Returns the process of a role; psutil.NoSuchProcess if it does not run."""

    @abstractmethod
    def processes(self) -> list[psutil.Process]:
        """Returns all processes that run now."""

    def parent_of_jobs(self, role: str) -> psutil.Process:
        """Returns the process whose children run jobs or serve requests."""
        return self.main_process(role)

    def job_process(self, role: str) -> psutil.Process:
        """Returns the newest child of a role: the process of its job, or one that serves requests."""
        children = self.parent_of_jobs(role).children(recursive=True)
        if not children:
            raise psutil.NoSuchProcess(0, role)
        return max(children, key=lambda process: process.create_time())

    def kill(self, role: str) -> None:
        """Kills the process of a role; its supervisor starts another."""
        self.main_process(role).kill()

    def kill_job(self, role: str) -> None:
        """Kills the newest child of a role, if it has one."""
        with suppress(psutil.NoSuchProcess):
            self.job_process(role).kill()

    def kill_engine(self) -> None:
        """Kills the newest process of llama.cpp or vLLM.

        Raises:
            psutil.NoSuchProcess: none runs.
        """
        found = [
            process
            for process in self.parent_of_jobs("generate").children(recursive=True)
            if any(word in " ".join(process.cmdline()) for word in ENGINE_WORDS)
        ]
        if not found:
            raise psutil.NoSuchProcess(0, "engine")
        max(found, key=lambda process: process.create_time()).kill()

    def pause(self, role: str) -> None:
        """Stops the process of a role and its children."""
        main = self.main_process(role)
        self._stop_all([main, *main.children(recursive=True)])

    def pause_job(self, role: str) -> None:
        """Stops the newest child of a role, if it has one."""
        with suppress(psutil.NoSuchProcess):
            self._stop_all([self.job_process(role)])

    def resume(self, role: str) -> None:
        """Lets stopped processes go on."""
        while self._paused:
            with suppress(psutil.NoSuchProcess):
                self._paused.pop().resume()

    def _stop_all(self, processes: list[psutil.Process]) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
                self._paused.append(process)

    def left_files(self) -> list[str]:
        """Returns the temporary files that processes have left after the service has ended."""
        return []

    # ---- network and clock ----------------------------------------------------------------------------

    @abstractmethod
    def cut(self, role: str) -> None:
        """Breaks the connections of a role to Redis and refuses new ones."""

    @abstractmethod
    def swallow(self, role: str) -> None:
        """Lets nothing pass between a role and Redis, without breaking connections."""

    @abstractmethod
    def delay(self, role: str, seconds: float) -> None:
        """Delays everything between a role and Redis, each way."""

    @abstractmethod
    def reconnect(self, role: str) -> None:
        """Ends the fault of a role's network."""

    def step_clock(self, seconds: int) -> None:
        """Sets the clock of all processes to this offset."""
        raise NotImplementedError

    def wait_until_ready(self) -> None:
        """Returns when all parts of the service work.

        Raises:
            TimeoutError: they do not within five minutes.
        """
        deadline = time.monotonic() + START_SECONDS
        while not read_readiness(self.url).is_ready:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The service is not ready after {START_SECONDS:.0f} s.")
            time.sleep(0.2)

    @contextmanager
    @abstractmethod
    def running(self) -> Iterator[None]:
        """Starts the service and waits until it is ready; ends it afterwards."""
        yield
