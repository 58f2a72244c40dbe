"""Deliveries of webhooks: one message for each ended job whose request has a webhook, kept with the job's record.

A delivery is created in the transaction that finalizes its job. The sorted set `graftwerk:deliveries` has the time of the next
attempt of each pending one; taking one moves that time into the future, so that a process that dies leaves it to the next:
each is sent at least once.
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field
from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from services.errors import DeliveryNotFound, DeliveryPending
from services.jobs.events import LARGE_RESULT_BYTES
from services.jobs.records import deliveries_key, reaching_redis, transact
from services.jobs.status import Job
from services.timestamps import utc_now

DUE_KEY = "graftwerk:deliveries"
"""Sorted set of pending deliveries, `<job> <delivery>`, by the time (seconds) of the next attempt."""

CLAIM_SECONDS = 60
"""Time after which a delivery that a process has taken and not settled is due again; longer than an attempt."""

RETRY_SECONDS = (5, 30, 300, 1800, 7200, 18000, 36000)
"""Pauses before the attempts after the first."""

ATTEMPTS_KEPT = 20

DeliveryStatus = Literal["pending", "delivered", "failed"]


class Attempt(BaseModel):
    """One attempt: the status code of the receiver's response, or the reason why there is none."""

    model_config = ConfigDict(frozen=True)

    at: str
    seconds: float
    status_code: int | None = None
    error: str | None = None
    is_final: bool = Field(default=False, exclude=True)

    @property
    def is_delivered(self) -> bool:
        """True if the receiver has accepted the delivery."""
        return self.status_code is not None and 200 <= self.status_code < 300


class Delivery(BaseModel):
    """One message to the webhook of a job."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="The header `webhook-id` of all its attempts.")
    event: str = Field(examples=["job.succeeded"])
    url: str
    status: DeliveryStatus
    created_at: str
    next_attempt_at: float | None = Field(
        description="Seconds since 1970; null once it is delivered or has failed."
    )
    attempts: list[Attempt] = Field(description="The newest ones, oldest first.")

    def after(self, attempt: Attempt) -> "Delivery":
        """Returns the delivery after an attempt: delivered, failed for good, or due again after a pause."""
        attempts = [*self.attempts, attempt][-ATTEMPTS_KEPT:]
        status, due = self._next(attempt, len(self.attempts))
        return self.model_copy(update={"attempts": attempts, "status": status, "next_attempt_at": due})

    @staticmethod
    def _next(attempt: Attempt, earlier: int) -> tuple[DeliveryStatus, float | None]:
        if attempt.is_delivered:
            return "delivered", None
        if attempt.is_final or earlier >= len(RETRY_SECONDS):
            return "failed", None
        return "pending", time.time() + RETRY_SECONDS[earlier]


def message(job: Job) -> str:
    """Returns the JSON of the message of a job's end; a large result is left out, as in the stream for all jobs."""
    data = job.model_dump(mode="json")
    if len(json.dumps(data)) > LARGE_RESULT_BYTES:
        data["result"] = None
    return json.dumps({"type": f"job.{job.status}", "timestamp": data["finished_at"], "data": data})


def create(pipe: Pipeline, job: Job) -> None:
    """Creates the delivery of an ended job, if its request has a webhook for this end."""
    webhook = job.request.webhook
    if webhook is None or job.status not in webhook.events:
        return
    delivery = Delivery(
        id=f"msg_{uuid4().hex}",
        event=f"job.{job.status}",
        url=webhook.url,
        status="pending",
        created_at=utc_now(),
        next_attempt_at=time.time(),
        attempts=[],
    )
    _write(pipe, job.id, delivery)


@reaching_redis()
def read_deliveries(redis: Redis, job_id: str) -> list[Delivery]:
    """Returns the deliveries of a job."""
    values = redis.hvals(deliveries_key(job_id))
    return sorted(map(Delivery.model_validate_json, values), key=lambda delivery: delivery.created_at)


@reaching_redis()
def read_delivery(redis: Redis, job_id: str, delivery_id: str) -> Delivery:
    """Returns one delivery.

    Raises:
        DeliveryNotFound: the job has no such delivery.
    """
    value = redis.hget(deliveries_key(job_id), delivery_id)
    if value is None:
        raise DeliveryNotFound(f"Job {job_id} has no delivery {delivery_id!r}.")
    return Delivery.model_validate_json(value)


@reaching_redis()
def redeliver(redis: Redis, job_id: str, delivery_id: str) -> Delivery:
    """Makes a delivery that was made or has failed due again, with all its attempts.

    Raises:
        DeliveryNotFound: the job has no such delivery.
        DeliveryPending: it is due anyway.
    """
    delivery = read_delivery(redis, job_id, delivery_id)
    if delivery.status == "pending":
        raise DeliveryPending(f"Delivery {delivery_id} is pending and will be sent again.")
    update = {"status": "pending", "next_attempt_at": time.time(), "attempts": []}
    again = delivery.model_copy(update=update)
    with redis.pipeline() as pipe:
        _write(pipe, job_id, again)
        pipe.execute()
    return again


def count_pending(redis: Redis) -> int:
    """Returns the number of deliveries that have not ended."""
    return int(redis.zcard(DUE_KEY))


def take_due(redis: Redis, count: int) -> list[tuple[str, str]]:
    """Takes up to this number of due deliveries for `CLAIM_SECONDS`; returns their jobs and ids."""
    attempt = partial(_take, redis, count)
    return [(job_id, delivery_id) for job_id, delivery_id in transact(redis, attempt, DUE_KEY)]


def settle(redis: Redis, job_id: str, delivery: Delivery) -> None:
    """Records a delivery after an attempt."""
    transact(redis, partial(_settle, redis, job_id, delivery), deliveries_key(job_id))


def drop(redis: Redis, job_id: str, delivery_id: str) -> None:
    """Forgets a delivery whose job is gone."""
    redis.zrem(DUE_KEY, f"{job_id} {delivery_id}")


def _take(redis: Redis, count: int, pipe: Pipeline) -> Sequence[Sequence[str]]:
    found: Any = redis.zrangebyscore(DUE_KEY, "-inf", time.time(), start=0, num=count)
    members = [as_text(member) for member in found]
    pipe.multi()
    for member in members:
        pipe.zadd(DUE_KEY, {member: time.time() + CLAIM_SECONDS})
    return [member.split(" ") for member in members]


def _settle(redis: Redis, job_id: str, delivery: Delivery, pipe: Pipeline) -> None:
    is_known = redis.hexists(deliveries_key(job_id), delivery.id)
    pipe.multi()
    if is_known:  # else the job was deleted meanwhile
        _write(pipe, job_id, delivery)
    else:
        pipe.zrem(DUE_KEY, f"{job_id} {delivery.id}")


def _write(pipe: Pipeline, job_id: str, delivery: Delivery) -> None:
    pipe.hset(deliveries_key(job_id), delivery.id, json.dumps(delivery.model_dump(mode="json")))
    member = f"{job_id} {delivery.id}"
    if delivery.next_attempt_at is None:
        pipe.zrem(DUE_KEY, member)
    else:
        pipe.zadd(DUE_KEY, {member: delivery.next_attempt_at})
