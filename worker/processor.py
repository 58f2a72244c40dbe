"""Processor time of a worker: threads, their waiting policy and the priority, by the queue that it serves.

Generation streams to people and gets half of the cores at normal priority. Conversions and merges take all cores at a
lower priority, so that a chat next to them stays responsive and an idle machine is fully used.
"""

import os
from pathlib import Path

from services.kinds import QueueName

CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
"""cgroup v2: "quota period" in microseconds, or "max period"."""

NICENESS = 5
"""Increment of the niceness of workers that convert and merge: a third of the weight of one that generates.

With 10 a merge next to a chat with the miniature kept 0.32 of its speed on two cores (docs/benchmarks.md).
"""


def usable_cores(quota_file: Path = CPU_QUOTA_FILE) -> int:
    """Returns the cores that this process may use, by its affinity and its container's quota; at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if quota_file.is_file():
        quota, period = quota_file.read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, int(quota) // int(period))
    return max(1, cores)


def thread_count(queue: QueueName, cores: int) -> int:
    """Returns the threads of a worker of this queue on a number of cores."""
    return max(1, cores // 2) if queue == "generate" else cores


def set_wait_policy() -> None:
    """Lets idle OpenMP threads sleep instead of spin, unless the environment says otherwise.

    Spinning threads slow the other workers on the same cores down several times. The OpenMP library reads the policy
    when it is loaded, so this comes before the import of torch.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def lower_priority(queue: QueueName) -> None:
    """Lowers the priority of this process unless it generates."""
    if queue != "generate":
        os.nice(NICENESS)


def set_threads(count: int) -> None:
    """Limits torch's threads: more than there are cores are many times slower."""
    import torch  # noqa: PLC0415  (the janitor does not need it)

    torch.set_num_threads(count)
