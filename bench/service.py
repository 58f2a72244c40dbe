"""The service under measurement: Redis, API and workers as `graftwerk serve` starts them, and requests over HTTP."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
from graftwerk.local_service import LocalService, free_port
from graftwerk.supervisor_config import CONFIG_FILE, ServiceLocation
from httpx_sse import ServerSentEvent, connect_sse
from redis import Redis

Json = dict[str, Any]
ENDED = ("succeeded", "failed", "canceled")
MODEL = "small"


class Service:
    """A running service."""

    def __init__(self, location: ServiceLocation) -> None:
        self.location = location
        self.http = httpx.Client(
            base_url=location.url, timeout=120, trust_env=False, limits=httpx.Limits(max_connections=None)
        )
        config = (location.data_dir / CONFIG_FILE).read_text(encoding="utf-8")
        found = re.search(r"--bind 127\.0\.0\.1 --port (\d+)", config)
        assert found is not None
        self.redis: Redis = Redis(port=int(found[1]), protocol=2)

    def submit(self, ask: Json) -> str:
        """Submits a generate job that returns token ids, and returns the job's id."""
        body = {"kind": "generate", "model": MODEL, "return_token_ids": True, **ask}
        answer = self.http.post("/api/jobs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def events(self, job_id: str, last_id: str = "") -> Iterator[ServerSentEvent]:
        """Yields a job's events until it has ended; keep-alives are left out."""
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with connect_sse(self.http, "GET", f"/api/jobs/{job_id}/events", headers=headers) as source:
            assert source.response.status_code == 200
            yield from (event for event in source.iter_sse() if event.data)

    def wait(self, job_id: str) -> Json:
        """Returns the job after it has ended."""
        for event in self.events(job_id):
            if event.event == "status":
                job: Json = json.loads(event.data)
                if job["status"] in ENDED:
                    return job
        raise AssertionError(f"the events of {job_id} ended before it")

    def wait_for_text(self, job_id: str) -> None:
        """Returns when the job's first text has been streamed."""
        for event in self.events(job_id):
            if event.event == "token":
                return
        raise AssertionError(f"no text of {job_id}")

    def generate_worker(self) -> psutil.Process:
        """Returns the process that generates."""
        (found,) = self._processes("-m worker generate")
        return found

    def api(self) -> list[psutil.Process]:
        """Returns Gunicorn's processes."""
        return self._processes("api.wsgi:application")

    def _processes(self, words: str) -> list[psutil.Process]:
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if words in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


@contextmanager
def running(
    folder: Path, *, slots: int, threads: int | None, retention_seconds: int = 86400
) -> Iterator[Service]:
    """A service with its own data and the models of `folder/models`; `threads` None leaves them to the workers."""
    data_dir = folder / "service"
    shutil.rmtree(data_dir, ignore_errors=True)
    location = ServiceLocation(data_dir=data_dir, models_dir=folder / "models", port=free_port())
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTWERK_")}
    environ |= {
        "GRAFTWERK_GENERATE_SLOTS": str(slots), "GRAFTWERK_DEVICE": "cpu", "GRAFTWERK_QUEUE_LIMIT": "100000",
        "GRAFTWERK_JOB_RETENTION_SECONDS": str(retention_seconds),
    }  # fmt: skip
    environ.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        environ |= {"GRAFTWERK_TORCH_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    with LocalService(location, environ) as local:
        local.wait_until_ready()
        service = Service(location)
        # The first job loads the model.
        service.wait(service.submit({"prompt": "warm", "sampling": {"max_new_tokens": 2}}))
        yield service
        service.http.close()


def token_ids(job: Json) -> list[int]:
    """Returns the tokens of a succeeded job; fails for any other."""
    assert job["status"] == "succeeded", job["error"]
    found: list[int] = job["result"]["outputs"][0]["token_ids"]
    return found


def seconds_since(start: float, moment: str) -> float:
    """Returns the seconds from a `time.time()` to a timestamp of a job."""
    return datetime.fromisoformat(moment).timestamp() - start


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Returns when the condition holds or the time is over; the caller checks again."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
