"""Limits of waiting jobs of one key and of each kind."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis
from werkzeug.test import TestResponse

from services.errors import InvalidSettings, QueueFull
from services.jobs.queue import JobQueue, connect
from services.jobs.queue_limits import QueueLimits
from services.jobs.submission import Origin
from services.kinds import parse_request
from services.kinds.shared import JobRequest
from services.settings import Settings
from tests.api_client import client_of, import_request, problem


def convert() -> JobRequest:
    return parse_request({"kind": "convert", "source": "llama", "target": f"m-{uuid4()}"})


def generate() -> JobRequest:
    return parse_request({"kind": "generate", "model": "llama", "prompt": "x"})


def test_a_kind_that_is_full_is_refused_and_others_are_not(redis: Redis, settings: Settings) -> None:
    queue = JobQueue(redis, settings.model_copy(update={"queue_limits": "convert=2,merge=1"}))
    first = queue.submit(convert())[0].id
    queue.submit(convert())
    with pytest.raises(QueueFull, match="2 convert jobs wait, and the limit of this kind is 2"):
        queue.submit(convert())
    queue.submit(generate())
    queue.cancel(first)
    queue.submit(convert())


def test_a_running_job_does_not_count(redis: Redis, settings: Settings) -> None:
    queue = JobQueue(redis, settings.model_copy(update={"queue_limits": "convert=1"}))
    job_id = queue.submit(convert())[0].id
    redis.hset(f"rq:job:{job_id}", "status", "started")
    queue.submit(convert())


def test_the_limit_of_one_key_is_exact_and_its_own(redis: Redis, settings: Settings) -> None:
    limited = settings.model_copy(update={"queue_limit_per_key": 5})

    def submit(owner: str) -> bool:
        try:
            JobQueue(connect(settings), limited).submit(convert(), origin=Origin(owner))
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(submit, ["a"] * 12)) == 5
    assert submit("b")
    assert submit("")
    with pytest.raises(QueueFull, match="5 jobs of this key wait, and the limit of one key is 5"):
        JobQueue(redis, limited).submit(convert(), origin=Origin("a"))


def test_keys_of_requests_have_limits_of_their_own(redis: Redis, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}
    keys.write_text("".join(f"{digest} submit {name}\n" for name, digest in digests.items()))
    client = client_of(tmp_path, redis=redis, api_keys_file=keys, queue_limit_per_key=1)
    body = import_request(tmp_path)

    def submit(key: str, target: str) -> TestResponse:
        headers = {"Authorization": f"Bearer {key}"}
        return client.post("/api/jobs", json={**body, "target": target}, headers=headers)

    assert submit("one", "a").status_code == 202
    refused = submit("one", "b")
    problem(refused, 429, "queue_full")
    assert int(refused.headers["Retry-After"]) > 0
    assert submit("two", "b").status_code == 202


@pytest.mark.parametrize("text", ["convert", "convert=", "convert=-1", "prune=3", "convert=1;merge=2", "=1"])
def test_a_malformed_limit_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match="GRAFTWERK_QUEUE_LIMITS"):
        QueueLimits.of(Settings(queue_limits=text))


def test_limits_are_read() -> None:
    limits = QueueLimits.of(Settings(queue_limits=" convert=2, extend-tokenizer=0,", queue_limit_per_key=7))
    assert limits.of_kinds == {"convert": 2, "extend-tokenizer": 0}
    assert limits.per_key == 7
    assert not QueueLimits.of(Settings()).need_jobs
