"""Janitor: looks for lost workers each second, and maintains queue and volume every ten seconds.

Several janitors may look for lost workers; only one at a time does the maintenance.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from redis import Redis
from redis.exceptions import ConnectionError, LockError, OutOfMemoryError, TimeoutError

from services.errors import NotReady, VolumeUnavailable
from services.jobs.identity import service_tag
from services.jobs.liveness import Clock
from services.jobs.maintenance import active_jobs, needed_uploads, remove_expired, run_maintenance
from services.jobs.recovery import Recovery
from services.models.store import ModelStore
from services.settings import Settings

RECOVERY_SECONDS = 1
"""Interval of looking for lost workers."""

ROUND_SECONDS = 10
"""Interval of the maintenance."""

LOCK_KEY = "graftwerk:janitor"
LOCK_SECONDS = 120

logger = logging.getLogger("graftwerk.janitor")


class Janitor:
    """Repairs the queue and removes leftovers of dead processes on the volume."""

    def __init__(self, redis: Redis, settings: Settings, clock: Clock = time.monotonic) -> None:
        self.redis = redis
        self.clock = clock
        self.recovery = Recovery(redis, clock)
        self.store = ModelStore(settings.models_dir)

    def work(self, stop: threading.Event) -> None:
        """Runs rounds until `stop` is set."""
        due_at, wait_seconds = self.clock(), 0.0
        while not stop.wait(wait_seconds):
            wait_seconds = RECOVERY_SECONDS
            try:
                self.recover()
                if self.clock() >= due_at:
                    due_at = self.clock() + ROUND_SECONDS
                    self.round()
            except (ConnectionError, TimeoutError) as error:
                self._forget_workers()
                logger.warning("Redis does not answer: %s", error)
            except OutOfMemoryError as error:
                self._forget_workers()
                # Its lock needs memory too; deleting needs neither.
                self._report(remove_expired(self.redis))
                logger.warning("Redis has no memory left, only expired records are removed: %s", error)
            except (NotReady, VolumeUnavailable) as error:
                logger.warning("%s", error.message)

    def recover(self) -> None:
        """Runs one round of the search for lost workers."""
        self._report(self.recovery.round())

    def round(self) -> bool:
        """Runs one round of maintenance; returns False if another janitor is running one."""
        lock = self.redis.lock(LOCK_KEY, timeout=LOCK_SECONDS)
        if not lock.acquire(blocking=False):
            return False
        try:
            self._report(run_maintenance(self.redis))
            active = active_jobs(self.redis)
            self.store.volume.require()  # where the mount is missing, nothing is swept
            # the files of a killed execution stay as long as its job may reuse them
            gone = self.store.sweep(
                lambda execution: execution.partition(".")[0] in active, service_tag(self.redis)
            )
            self._report([f"Removed {path}." for path in gone])
            expired = self.store.uploads.sweep(needed_uploads(self.redis))
            self._report([f"Removed the expired upload {upload}." for upload in expired])
        finally:
            with suppress(LockError):  # a round that outlived the lock is harmless
                lock.release()
        return True

    def _forget_workers(self) -> None:
        """Starts the search again: workers could not send heartbeats while Redis did not answer."""
        self.recovery = Recovery(self.redis, self.clock)

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
