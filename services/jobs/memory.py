"""Memory of a machine: jobs that need much of it wait until it is there, and no two count on the same bytes.

The hash `graftwerk:memory` has an entry for each job that has been given memory. Bytes that the job's process uses already
are not available any more, and not reserved either. The machine is named by its kernel's boot id, which all containers share.
"""

import os
from dataclasses import asdict, dataclass
from functools import partial
from json import dumps, loads
from pathlib import Path

from redis import Redis
from redis.client import Pipeline
from rq.utils import as_text

from services.errors import InsufficientMemory
from services.jobs.records import JOBS_KEY, reaching_redis, record_key, transact

MEMORY_KEY = "graftwerk:memory"

LIGHT_BYTES = 2**30
"""Need up to which a job passes heavier ones that have waited for long."""

PATIENCE_SECONDS = 600
"""Time after which memory is kept for a waiting job: heavier jobs submitted later then wait for it."""

WANTED_SECONDS = 15

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
MEMORY_INFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory that a process may use in all, and what is available now, in bytes."""

    total_bytes: int
    available_bytes: int


def machine() -> str:
    """Returns the name of this machine until its next start, the same in all its containers."""
    return BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.is_file() else os.uname().nodename


def read_memory(info: Path = MEMORY_INFO, container: Path = CONTAINER) -> Memory:
    """Returns the memory of this process: the machine's, or less if its container has a limit."""
    if not info.is_file():
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Memory(total, total)
    lines = (line.split() for line in info.read_text(encoding="ascii").splitlines())
    values = {line[0]: int(line[1]) * 1024 for line in lines if len(line) > 1}
    total, available = values["MemTotal:"], values["MemAvailable:"]
    limit = container / "memory.max"
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    if text == "max":
        return Memory(total, available)
    used = int((container / "memory.current").read_text(encoding="ascii"))
    statistics = dict(
        line.split() for line in (container / "memory.stat").read_text(encoding="ascii").splitlines()
    )
    used -= int(statistics.get("inactive_file", 0))  # the kernel drops cached files first
    return Memory(min(total, int(text)), min(available, max(0, int(text) - used)))


def resident_bytes(pid: int) -> int:
    """Returns the memory that a process has in use, 0 if it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """Entry of a job; memory of a `waiting` one is kept from heavier jobs that were created after it."""

    machine: str
    needed_bytes: int
    used_bytes: int = 0
    created_us: float = 0
    waiting: bool = False

    @property
    def open_bytes(self) -> int:
        """Bytes that the job will still take."""
        return max(0, self.needed_bytes - self.used_bytes)


@dataclass(frozen=True, slots=True)
class MemoryAdmission:
    """Admission of one job, before it is started on this machine."""

    redis: Redis
    job_id: str
    memory: Memory
    machine: str

    def admit(self, needed_bytes: int, waited_seconds: float) -> str:
        """Reserves the memory and returns the empty string, or returns what the job waits for.

        Raises:
            InsufficientMemory: it can never fit.
        """
        check_capacity(needed_bytes, self.memory.total_bytes)
        attempt = partial(self._attempt, needed_bytes, waited_seconds)
        return transact(self.redis, attempt, MEMORY_KEY)

    def _attempt(self, needed_bytes: int, waited_seconds: float, pipe: Pipeline) -> str:
        created_us = self.redis.zscore(JOBS_KEY, self.job_id) or 0.0
        reserved = sum(
            entry.open_bytes
            for job_id, entry in read_reservations(self.redis).items()
            if job_id != self.job_id and self._counts(entry, needed_bytes, created_us)
        )
        fits = needed_bytes <= self.memory.available_bytes - reserved
        pipe.multi()
        if fits or waited_seconds >= PATIENCE_SECONDS:
            entry = Reservation(
                machine=self.machine, needed_bytes=needed_bytes, created_us=created_us, waiting=not fits
            )
            pipe.hset(MEMORY_KEY, self.job_id, dumps(asdict(entry)))
        if fits:
            return ""
        pipe.set(wanted_key(self.machine), needed_bytes, ex=WANTED_SECONDS)
        others = f", and {reserved} are reserved for other jobs" if reserved else ""
        return f"The job needs {needed_bytes} bytes of memory; {self.memory.available_bytes} are available{others}."

    def _counts(self, entry: Reservation, needed_bytes: int, created_us: float) -> bool:
        if entry.machine != self.machine:
            return False
        return not entry.waiting or (needed_bytes > LIGHT_BYTES and entry.created_us < created_us)


def check_capacity(needed_bytes: int, total_bytes: int) -> None:
    """Checks that a job can fit at all.

    Raises:
        InsufficientMemory: it needs more than there is.
    """
    if needed_bytes > total_bytes:
        raise InsufficientMemory(
            f"The job needs {needed_bytes} bytes of memory; the worker may use {total_bytes}.",
            "Give the worker more memory, or run the job on a larger machine.",
        )


def check_kv_capacity(needed_bytes: int, limit_bytes: int) -> None:
    """Checks that keys and values of one output can fit at all.

    Raises:
        InsufficientMemory: they need more than a worker may use.
    """
    if needed_bytes > limit_bytes:
        raise InsufficientMemory(
            f"One output needs {needed_bytes} bytes for keys and values; a worker may use {limit_bytes}.",
            "Lower max_new_tokens, or give the worker more (GRAFTWERK_KV_CACHE_BYTES).",
        )


def read_reservations(redis: Redis) -> dict[str, Reservation]:
    """Returns the reservations by job."""
    return {as_text(job_id): Reservation(**loads(text)) for job_id, text in redis.hgetall(MEMORY_KEY).items()}


@reaching_redis()
def reserved_memory(redis: Redis, machine_name: str) -> int:
    """Returns the bytes of a machine that running jobs have reserved and not taken yet."""
    entries = read_reservations(redis).values()
    return sum(entry.open_bytes for entry in entries if entry.machine == machine_name and not entry.waiting)


def note_used(redis: Redis, job_id: str, used_bytes: int) -> None:
    """Notes what the process of a job uses of its reservation, if it has one; one that ends meanwhile stays ended."""

    def attempt(pipe: Pipeline) -> None:
        text = redis.hget(MEMORY_KEY, job_id)
        pipe.multi()
        if text is not None:
            pipe.hset(MEMORY_KEY, job_id, dumps({**loads(text), "used_bytes": used_bytes}))

    transact(redis, attempt, MEMORY_KEY)


def release_memory(pipe: Pipeline, job_id: str) -> None:
    """Ends a job's reservation."""
    pipe.hdel(MEMORY_KEY, job_id)


def wanted_key(machine_name: str) -> str:
    """Returns the key that exists while a job waits for memory of this machine."""
    return f"graftwerk:memory-wanted:{machine_name}"


def is_memory_wanted(redis: Redis) -> bool:
    """Returns True while a job waits for memory of this machine."""
    return bool(redis.exists(wanted_key(machine())))


def needed_memory(redis: Redis, job_id: str) -> int:
    """Returns the peak memory of a job from its plan, 0 if it is not known."""
    return int(redis.hget(record_key(job_id), "memory") or 0)


def note_needed_memory(redis: Redis, job_id: str, needed_bytes: int) -> None:
    """Notes the peak memory of a job whose plan was not known when it was submitted."""
    redis.hset(record_key(job_id), "memory", needed_bytes)
