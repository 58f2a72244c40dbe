"""Delivery of webhooks, in a thread of the janitor's process: what is due is sent, several messages at once."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from redis import Redis
from redis.exceptions import RedisError

from services.errors import DeliveryNotFound, JobNotFound
from services.jobs.deliveries import drop, message, read_delivery, settle, take_due
from services.jobs.records import read_job
from services.jobs.webhook_client import WebhookSender
from services.logs import log_ids

POLL_SECONDS = 1.0
"""Interval at which due deliveries are looked up."""

SLOTS = 8
"""Number of messages that are sent at once: a slow receiver takes one."""

logger = logging.getLogger("graftwerk.deliveries")


class DeliveryLoop:
    """Sends due deliveries. Several may run: each takes deliveries of its own."""

    def __init__(self, redis: Redis, sender: WebhookSender) -> None:
        self.redis = redis
        self.sender = sender
        self._running: dict[Future[None], str] = {}

    def work(self, stop: threading.Event) -> None:
        """Sends until `stop` is set; messages that are being sent then are finished or due again later."""
        with ThreadPoolExecutor(SLOTS, thread_name_prefix="delivery") as pool:
            while not stop.wait(POLL_SECONDS):
                try:
                    self.round(pool)
                except RedisError as error:
                    logger.warning("Redis does not answer; deliveries wait: %s", error)

    def round(self, pool: ThreadPoolExecutor) -> None:
        """Begins to send what is due, as far as slots are free."""
        for future in [future for future in self._running if future.done()]:
            name, error = self._running.pop(future), future.exception()
            if error is not None:  # its claim ends, and it is due again
                logger.warning("Delivery %s: %s", name, error)
        for job_id, delivery_id in take_due(self.redis, SLOTS - len(self._running)):
            self._running[pool.submit(self.deliver, job_id, delivery_id)] = delivery_id

    def deliver(self, job_id: str, delivery_id: str) -> None:
        """Makes one attempt and records it."""
        try:
            delivery, job = read_delivery(self.redis, job_id, delivery_id), read_job(self.redis, job_id)
        except (DeliveryNotFound, JobNotFound):
            drop(self.redis, job_id, delivery_id)
            return
        attempt = self.sender.send(delivery.url, delivery.id, message(job))
        after = delivery.after(attempt)
        settle(self.redis, job_id, after)
        outcome = attempt.status_code or attempt.error
        with log_ids(job=job_id):
            logger.info("Job %s: delivery %s: %s after %s", job_id, delivery_id, after.status, outcome)
