"""Ids in log lines: those of a request, its job and its execution lead from one process to the next."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from redis import Redis

from api import create_app
from services.jobs.fork_worker import ForkWorker
from services.jobs.queue import JobQueue
from services.logs import JsonLines, TextLines, log_config, log_ids
from services.settings import Settings
from tests.api_client import import_request


@contextmanager
def lines_of(name: str, formatter: logging.Formatter) -> Iterator[io.StringIO]:
    """Yields the text that a logger writes within the block."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(formatter)
    logger = logging.getLogger(name)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    try:
        yield text
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_block_adds_its_ids_to_its_lines(log_format: str) -> None:
    options = dict(log_config(log_format)["formatters"]["line"])
    formatter = options.pop("()")(**options)
    with lines_of("test.ids", formatter) as text:
        logger = logging.getLogger("test.ids")
        with log_ids(request="r-1", execution=""), log_ids(job="j-1"):
            logger.info("inside")
        logger.info("outside")
    inside, outside = text.getvalue().splitlines()
    if log_format == "text":
        assert inside.endswith("test.ids: inside [request=r-1 job=j-1]")
        assert outside.endswith("test.ids: outside")
        return
    fields = json.loads(inside)
    assert (fields["message"], fields["request"], fields["job"]) == ("inside", "r-1", "j-1")
    assert "execution" not in fields
    assert set(json.loads(outside)) == {"time", "level", "logger", "message"}


def test_a_request_can_be_followed_to_its_job_and_its_execution(redis: Redis, settings: Settings) -> None:
    api = create_app(settings, queue=JobQueue(redis, settings)).test_client()
    headers = {"X-Request-Id": "request-1"}
    with lines_of("graftwerk.jobs", TextLines("%(message)s%(ids)s")) as text:
        job_id = api.post("/api/jobs", json=import_request(settings.models_dir), headers=headers).get_json()[
            "id"
        ]
    assert text.getvalue() == f"Job {job_id} of kind import is queued. [request=request-1 job={job_id}]\n"
    worker = ForkWorker(
        "convert", name="convert-1", redis=redis, settings=settings, prepare_process=lambda: None
    )
    taken = worker.dequeue_job_and_maintain_ttl(1)
    assert taken is not None
    with lines_of("graftwerk.worker", JsonLines()) as text:
        execution = worker.prepare_execution(taken[0])
    line = json.loads(text.getvalue())
    assert (line["request"], line["job"], line["execution"]) == ("request-1", job_id, execution.id)
