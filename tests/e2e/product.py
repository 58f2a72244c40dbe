"""A running Graftwerk as the end-to-end tests see it: its HTTP interface and its model volume."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx
from httpx_sse import connect_sse

Json = dict[str, Any]

ENDED = ("succeeded", "failed", "canceled")
CONNECT_RETRIES = 5
"""Attempts to connect, over about 8 seconds."""
STOP_SECONDS = 20
MODELS_DIR_INSIDE = "/models"
"""Mount point of the model volume in the images."""


class ServerEvent(NamedTuple):
    """One server-sent event; keep-alive comments are left out."""

    id: str
    name: str
    data: Json


class LocalVolume:
    """The model volume of a stack on this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_incoming(self, source: Path, name: str) -> str:
        """Copies a file or folder to `incoming/name` and returns that path, as requests name it."""
        target = self.root / "incoming" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return f"incoming/{name}"

    def files(self) -> dict[str, str]:
        """Returns the mode (`-rw-r--r--`) of every file and folder on the volume, except under `incoming/`."""
        return _parse_find(_run("find", str(self.root), *_FIND))


class ComposeVolume:
    """The model volume of a compose project, reached through its API container."""

    def __init__(self, project: str) -> None:
        self.compose = ("docker", "compose", "-p", project)

    def put_incoming(self, source: Path, name: str) -> str:
        """Copies a file or folder to `incoming/name` and returns that path, as requests name it."""
        inside = f"{MODELS_DIR_INSIDE}/incoming/{name}"
        _run(*self.compose, "cp", str(source), f"api:{inside}")
        return f"incoming/{name}"

    def files(self) -> dict[str, str]:
        """Returns the mode (`-rw-r--r--`) of every file and folder on the volume, except under `incoming/`."""
        return _parse_find(_run(*self.compose, "exec", "-T", "api", "find", MODELS_DIR_INSIDE, *_FIND))


Volume = LocalVolume | ComposeVolume

_FIND = (
    "-mindepth", "1", "-not", "-path", "*/incoming*", "-not", "-name", ".staging", "-not", "-name", ".trash",
    "-printf", "%M %P\n",
)  # fmt: skip
"""Contents of the two folders for unfinished and deleted models count, the folders themselves do not."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def _parse_find(listing: str) -> dict[str, str]:
    pairs = (line.split(" ", 1) for line in listing.splitlines())
    return {path: mode for mode, path in pairs}


class Product:
    """Requests as a user's program sends them; waits for jobs by their events."""

    def __init__(self, url: str, volume: Volume) -> None:
        self.url = url
        self.volume = volume
        transport = httpx.HTTPTransport(retries=CONNECT_RETRIES)
        self.http = httpx.Client(base_url=url, timeout=30, transport=transport)

    def submit(self, **request: Any) -> Json:
        """Submits a job that must be accepted."""
        answer = self.http.post("/api/jobs", json=request)
        assert answer.status_code == 202, answer.text
        assert answer.headers["Location"] == f"/api/jobs/{answer.json()['id']}"
        return dict(answer.json())

    def plan(self, **request: Any) -> Json:
        """Returns the plan of a job that must be acceptable."""
        answer = self.http.post("/api/jobs", json=request, params={"dry_run": "true"})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def refusal(self, status: int, code: str, **request: Any) -> Json:
        """Submits a job that must be refused with this status and code, and returns the problem."""
        return problem(self.http.post("/api/jobs", json=request), status, code)

    def job(self, job_id: str) -> Json:
        """Returns a job in its present state."""
        return self.get(f"/api/jobs/{job_id}")

    def get(self, path: str, **params: Any) -> Json:
        """Returns the JSON of a path that must exist."""
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def cancel(self, job_id: str) -> Json:
        """Cancels a job that has not ended."""
        answer = self.http.post(f"/api/jobs/{job_id}/cancel")
        assert answer.is_success, answer.text
        return dict(answer.json())

    def wait(self, job_id: str, seconds: float = 120) -> Json:
        """Returns the job after its events have reported its end."""
        for event in self.events(job_id, seconds=seconds):
            if event.name == "status" and event.data["status"] in ENDED:
                return self.job(job_id)
        raise AssertionError(f"the events ended before the job: {self.job(job_id)}")

    def run(self, **request: Any) -> Json:
        """Submits a job and returns it once it has succeeded."""
        return self.succeeded(self.submit(**request)["id"])

    def succeeded(self, job_id: str) -> Json:
        """Returns the job once it has succeeded."""
        job = self.wait(job_id)
        assert job["status"] == "succeeded", job["error"]
        return job

    def wait_until_running(self, job_id: str) -> None:
        """Returns when the job's first progress has been reported."""
        for event in self.events(job_id):
            if event.name == "progress":
                return
            assert event.data["status"] not in ENDED, event.data
        raise AssertionError("no progress was reported")

    def events(
        self, job_id: str | None, *, last_id: str | None = None, seconds: float = 120
    ) -> Iterator[ServerEvent]:
        """Yields the events of one job, or of all; fails if they take longer than `seconds`."""
        path = "/api/events" if job_id is None else f"/api/jobs/{job_id}/events"
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        deadline = time.monotonic() + seconds
        with connect_sse(self.http, "GET", path, headers=headers) as source:
            assert source.response.status_code == 200
            for event in source.iter_sse():
                assert time.monotonic() < deadline, "the events took too long"
                if event.data:
                    yield ServerEvent(event.id, event.event, event.json())

    def model_names(self) -> list[str]:
        """Returns the names of all models on the volume."""
        return [model["name"] for model in self.get("/api/models")["models"]]


def problem(answer: httpx.Response, status: int, code: str) -> Json:
    """Returns the RFC 9457 problem of a response, which must have this status, this code and a readable message."""
    assert answer.headers["Content-Type"] == "application/problem+json", answer.text
    found: Json = answer.json()
    assert (answer.status_code, found["code"]) == (status, code), found
    assert found["status"] == status
    assert found["title"], found
    assert len(found["detail"]) > 10, found
    assert "Traceback" not in answer.text
    return found


class LocalStack(NamedTuple):
    """Real processes on this machine: `graftwerk serve` and its descendants."""

    process: subprocess.Popen[bytes]
    url: str
    models_dir: Path
    log: Path

    def descendants(self) -> dict[int, str]:
        """Returns the command lines of all running descendants by process id."""
        children: dict[int, list[int]] = {}
        for pid, fields in _processes():
            children.setdefault(int(fields[1]), []).append(pid)
        found: list[int] = []
        waiting = [self.process.pid]
        while waiting:
            mine = children.get(waiting.pop(), [])
            found += mine
            waiting += mine
        return {pid: command_line(pid) for pid in found}


def _processes() -> Iterator[tuple[int, Sequence[str]]]:
    # Of /proc/PID/stat, the fields behind the command: state, parent, group, session, …
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue


def is_alive(pid: int) -> bool:
    """Returns True if a process runs; a zombie does not."""
    return any(found == pid and fields[0] != "Z" for found, fields in _processes())


def command_line(pid: int) -> str:
    """Returns a process's command line, "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextmanager
def local_stack(data_dir: Path, **more: str) -> Iterator[LocalStack]:
    """Runs `graftwerk serve` on a free port with its data in `data_dir` and `more` settings; ends it with SIGTERM."""
    port = free_port()
    log = data_dir / "serve.log"
    data_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "graftwerk", "serve", "--port", str(port), "--data-dir", str(data_dir)]
    settings = {"GRAFTWERK_TORCH_THREADS": "1", "OMP_NUM_THREADS": "1", **more}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTWERK_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, env=inherited | settings
        )
    assert process.stdout is not None
    stack = LocalStack(process, f"http://127.0.0.1:{port}", data_dir / "models", log)
    try:
        wait_until_ready(process, process.stdout)
        yield stack
    except BaseException:
        for written in (log, *sorted((data_dir / "logs").glob("*.log"))):
            sys.stderr.write(f"--- {written.name}\n{written.read_text(errors='replace')[-3000:]}\n")
        raise
    finally:
        stop(stack)
        process.stdout.close()


def stop(stack: LocalStack) -> int:
    """Ends a stack as a service manager would and returns its exit status. May be called again."""
    if stack.process.poll() is None:
        stack.process.send_signal(signal.SIGTERM)
    try:
        return stack.process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        for pid in [*stack.descendants(), stack.process.pid]:
            os.kill(pid, signal.SIGKILL)
        stack.process.wait(STOP_SECONDS)
        raise


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    """Returns when `serve` has printed that it is ready; fails if it ends before that."""
    lines = list[bytes]()
    for line in output:
        lines.append(line)
        if b"is ready at" in line:
            return
    status = process.wait(STOP_SECONDS)
    raise AssertionError(f"serve ended with {status}: {b''.join(lines).decode()}")
