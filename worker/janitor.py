"""The janitor: every ten seconds, one of them at a time, lost jobs, missed endings and leftovers."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from redis import Redis
from redis.exceptions import ConnectionError, LockError, TimeoutError

from services.errors import NotReady
from services.jobs.maintenance import active_jobs, run_maintenance
from services.jobs.rq_workers import HEARTBEAT_SECONDS
from services.models.store import ModelStore
from services.settings import Settings

ROUND_SECONDS = 10
LOCK_KEY = "graftwerk:janitor"
LOCK_SECONDS = 120

logger = logging.getLogger("graftwerk.janitor")


class Janitor:
    """Puts right what died processes left, in the queue and on the volume."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.store = ModelStore(settings.models_dir)

    def work(self, stop: threading.Event) -> None:
        """Rounds until `stop` is set."""
        wait_seconds = 0.0
        while not stop.wait(wait_seconds):
            wait_seconds = ROUND_SECONDS
            try:
                self.round()
            except (ConnectionError, TimeoutError) as error:
                # Workers could not beat their hearts either: give them the time to.
                wait_seconds = ROUND_SECONDS + HEARTBEAT_SECONDS
                logger.warning("Redis does not answer, next round in %d s: %s", wait_seconds, error)
            except NotReady as error:
                logger.warning("%s", error.message)

    def round(self) -> bool:
        """One round; False if another janitor is at it."""
        lock = self.redis.lock(LOCK_KEY, timeout=LOCK_SECONDS)
        if not lock.acquire(blocking=False):
            return False
        try:
            self._report(run_maintenance(self.redis))
            active = active_jobs(self.redis)
            # what a killed execution has left is kept as long as its job may go on with it
            gone = self.store.sweep(lambda execution: execution.partition(".")[0] in active)
            self._report([f"swept {path}" for path in gone])
        finally:
            with suppress(LockError):  # a sweep that outlived the lock has done no harm
                lock.release()
        return True

    def _report(self, lines: list[str]) -> None:
        for line in lines:
            logger.info("%s", line)


def wait_for_redis(redis: Redis, *, pause: Callable[[float], None] = time.sleep) -> None:
    """Return once Redis answers, with a log line for each try that failed."""
    while True:
        try:
            redis.ping()
            return
        except (ConnectionError, TimeoutError) as error:
            logger.warning("waiting for Redis: %s", error)
            pause(2.0)
