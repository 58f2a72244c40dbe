"""Janitor: maintains queue and volume every ten seconds; only one janitor works at a time."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from redis import Redis
from redis.exceptions import ConnectionError, LockError, OutOfMemoryError, TimeoutError

from services.errors import NotReady
from services.jobs.maintenance import active_jobs, needed_uploads, remove_expired, run_maintenance
from services.jobs.rq_workers import HEARTBEAT_SECONDS
from services.models.store import ModelStore
from services.settings import Settings

ROUND_SECONDS = 10
LOCK_KEY = "graftwerk:janitor"
LOCK_SECONDS = 120

logger = logging.getLogger("graftwerk.janitor")


class Janitor:
    """Repairs the queue and removes leftovers of dead processes on the volume."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.store = ModelStore(settings.models_dir)

    def work(self, stop: threading.Event) -> None:
        """Runs rounds until `stop` is set."""
        wait_seconds = 0.0
        while not stop.wait(wait_seconds):
            wait_seconds = ROUND_SECONDS
            try:
                self.round()
            except (ConnectionError, TimeoutError) as error:
                # Workers could not send heartbeats either; they get the time to.
                wait_seconds = ROUND_SECONDS + HEARTBEAT_SECONDS
                logger.warning("Redis does not answer; next round in %d s: %s", wait_seconds, error)
            except OutOfMemoryError as error:
                # Its lock needs memory too; deleting needs neither.
                self._report(remove_expired(self.redis))
                logger.warning("Redis has no memory left, only expired records are removed: %s", error)
            except NotReady as error:
                logger.warning("%s", error.message)

    def round(self) -> bool:
        """Runs one round; returns False if another janitor is running one."""
        lock = self.redis.lock(LOCK_KEY, timeout=LOCK_SECONDS)
        if not lock.acquire(blocking=False):
            return False
        try:
            self._report(run_maintenance(self.redis))
            active = active_jobs(self.redis)
            # the files of a killed execution stay as long as its job may reuse them
            gone = self.store.sweep(lambda execution: execution.partition(".")[0] in active)
            self._report([f"Removed {path}." for path in gone])
            expired = self.store.uploads.sweep(needed_uploads(self.redis))
            self._report([f"Removed the expired upload {upload}." for upload in expired])
        finally:
            with suppress(LockError):  # a round that outlived the lock is harmless
                lock.release()
        return True

    def _report(self, lines: list[str]) -> None:
        for line in lines:
            logger.info("%s", line)


def wait_for_redis(redis: Redis, *, pause: Callable[[float], None] = time.sleep) -> None:
    """Returns once Redis answers; logs each failed attempt."""
    while True:
        try:
            redis.ping()
            return
        except (ConnectionError, TimeoutError) as error:
            logger.warning("Waiting for Redis: %s", error)
            pause(2.0)
