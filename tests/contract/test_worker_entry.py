"""Entry point as it is started in production: `python -m worker …`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from services.jobs.queue import JobQueue, connect
from services.kinds.convert import ConvertRequest
from services.kinds.import_ import ImportRequest
from services.settings import Settings
from tests.miniature import MINIATURE
from tests.redis_server import Server, until
from worker.processor import NICENESS, thread_count, usable_cores

ROOT = Path(__file__).parents[2]

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


@pytest.fixture
def start(settings: Settings, log: Path) -> Iterator[Start]:
    """Starts `python -m worker <role>` with these settings."""
    processes: list[subprocess.Popen[bytes]] = []

    def go(role: str, settings: Settings = settings, **environment: str) -> "subprocess.Popen[bytes]":
        own = {
            "GRAFTWERK_REDIS_URL": settings.redis_address,
            "GRAFTWERK_MODELS_DIR": str(settings.models_dir),
            "OMP_NUM_THREADS": "1",
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", role],
                env={**os.environ, **own, **environment},
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )
        processes.append(process)
        return process

    yield go
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """Server that is not started yet."""
    server = Server(tmp_path)
    yield server
    if server.process is not None:
        server.stop()


def test_an_import_and_a_conversion_use_the_modules_imported_before_the_fork(
    redis: Redis, settings: Settings, start: Start
) -> None:
    queue = JobQueue(redis, settings)
    shutil.copytree(MINIATURE / "llama", settings.models_dir / "incoming" / "llama")
    worker = start("convert", GRAFTWERK_TORCH_THREADS="1")
    until(lambda: bool(queue.workers()), seconds=60)
    imported = ImportRequest.model_validate(
        {"kind": "import", "source": {"path": "incoming/llama"}, "target": "llama"}
    )
    upstream = queue.submit(imported)[0].id
    converted = ConvertRequest.model_validate(
        {"kind": "convert", "source": "llama", "target": "llama-hf", "after": [upstream]}
    )
    job_id = queue.submit(converted)[0].id
    until(lambda: queue.get(job_id).status in ("succeeded", "failed"), seconds=30)
    job = queue.get(job_id)
    assert job.error is None
    assert (settings.models_dir / "llama-hf" / "model.safetensors").is_file()
    assert job.started_at is not None
    assert job.finished_at is not None
    assert (job.finished_at - job.started_at).total_seconds() < 3
    worker.terminate()
    assert worker.wait(timeout=10) == 0


def test_the_janitor_waits_for_redis_logs_json_and_stops_on_sigterm(
    own_server: Server, settings: Settings, start: Start, log: Path
) -> None:
    janitor = start(
        "janitor",
        settings.model_copy(update={"redis_url": SecretStr(own_server.url)}),
        GRAFTWERK_LOG_FORMAT="json",
    )
    until(lambda: "Waiting for Redis" in log.read_text(), seconds=30)
    own_server.start()
    until(lambda: "The janitor has started" in log.read_text(), seconds=30)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"level": "warning", "logger": "graftwerk.janitor"}.items() <= lines[0].items()
    janitor.terminate()
    assert janitor.wait(timeout=10) == 0


def test_a_worker_that_ends_by_itself_says_so_with_its_exit_code(
    own_server: Server, settings: Settings, start: Start
) -> None:
    own_server.start()
    settings = settings.model_copy(update={"redis_url": SecretStr(own_server.url)})
    worker = start("convert", settings)
    queue = JobQueue(connect(settings), settings)
    until(lambda: bool(queue.workers()), seconds=60)
    queue.redis.lpush("rq:job:broken", "no hash")
    queue.redis.lpush("rq:queue:convert", "broken")
    assert worker.wait(timeout=30) == 1


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)]
)
def test_a_containers_quota_bounds_the_threads(tmp_path: Path, quota: str, cores: int | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(quota)
    assert usable_cores(file) == (cores or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("cores", "generate"), [(1, 1), (2, 1), (3, 1), (8, 4)])
def test_generation_gets_half_of_the_cores_and_other_work_all(cores: int, generate: int) -> None:
    assert thread_count("generate", cores) == generate
    assert thread_count("merge", cores) == thread_count("convert", cores) == cores


def test_a_converting_worker_has_a_low_priority_and_idle_threads_that_sleep(
    own_server: Server, settings: Settings, start: Start, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    own_server.start()
    settings = settings.model_copy(update={"redis_url": SecretStr(own_server.url)})
    worker = start("convert", settings, OMP_DISPLAY_ENV="true")
    queue = JobQueue(connect(settings), settings)
    until(lambda: bool(queue.workers()), seconds=60)
    priority = os.getpriority(os.PRIO_PROCESS, worker.pid)
    assert priority == min(19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in log.read_text()
