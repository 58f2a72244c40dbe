"""States of the living workers, as their entries in Redis have them."""

import json

from redis import Redis
from rq.executions import WORKER_EXECUTIONS_KEY_TEMPLATE
from rq.utils import as_text, utcparse
from rq.worker_registration import get_keys

from services.jobs.status import WorkerState


def read_workers(redis: Redis) -> list[WorkerState]:
    """Returns the workers that are alive, by name: the janitor removes the entries of lost ones."""
    # Read directly: RQ's own listing raises the socket timeout of this connection to 415 s.
    keys = sorted(get_keys(connection=redis))
    found = [(key.removeprefix("rq:worker:"), _fields(redis, key)) for key in keys]
    return [
        _state(redis, name, fields) for name, fields in found if "queues" in fields and "death" not in fields
    ]


def _fields(redis: Redis, key: str) -> dict[str, str]:
    return {as_text(name): as_text(value) for name, value in redis.hgetall(key).items()}


def _state(redis: Redis, name: str, fields: dict[str, str]) -> WorkerState:
    executions = redis.smembers(WORKER_EXECUTIONS_KEY_TEMPLATE.format(name))
    return WorkerState(
        name=name,
        queue=fields["queues"],
        state=fields.get("state", "starting"),
        job_ids=sorted(as_text(entry).split(":")[0] for entry in executions),
        last_heartbeat=utcparse(fields["last_heartbeat"]),
        device=fields.get("device", "cpu"),
        models=json.loads(fields.get("models", "[]")),
        memory_bytes=int(fields.get("memory_bytes", 0)),
        engines=json.loads(fields.get("engines", "{}")),
        processes=json.loads(fields.get("processes", "[]")),
        kv_cache=json.loads(fields.get("kv_cache", "null")),
    )
