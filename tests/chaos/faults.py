"""Table of the faults: for each, the roles it can hit, how it begins and how it ends."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.system import System

QUEUES = ("convert", "merge", "generate")
CLOCK_STEP_SECONDS = 3600

Action = Callable[[System, str], None]


def _nothing(system: System, role: str) -> None:
    """Ends a fault that is over at once."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: as reports name it.
        roles: processes that it can hit.
        begin: starts the fault on a role; `end` ends it after `hold_seconds`.
        needs: name of the system's part without which the fault is missing.
        times: occurrences in one round of the table.
        is_quick: also in runs of less than three minutes.
        ends_process: another process has to take its place.
        meets_crowd: seven jobs run when it hits a process that generates.
    """

    name: str
    roles: tuple[str, ...]
    begin: Action
    end: Action = _nothing
    hold_seconds: float = 0.0
    needs: str = "processes"
    times: int = 1
    is_quick: bool = False
    ends_process: bool = False
    meets_crowd: bool = False


FAULTS = (
    Fault(
        name="kill a job process",
        roles=("convert", "merge"),
        begin=lambda system, role: system.kill_job(role),
        times=3,
        is_quick=True,
    ),
    Fault(
        name="kill a worker",
        roles=QUEUES,
        begin=lambda system, role: system.kill(role),
        ends_process=True,
        meets_crowd=True,
        times=4,
        is_quick=True,
    ),
    Fault(
        name="kill an engine's process",
        roles=("engine",),
        begin=lambda system, role: system.kill_engine(),
        meets_crowd=True,
        times=2,
        is_quick=True,
    ),
    Fault(
        name="kill the janitor",
        roles=("janitor",),
        begin=lambda system, role: system.kill(role),
        ends_process=True,
    ),
    Fault(
        name="kill the API", roles=("api",), begin=lambda system, role: system.kill(role), ends_process=True
    ),
    Fault(
        name="kill an API process",
        roles=("api",),
        begin=lambda system, role: system.kill_job(role),
        is_quick=True,
    ),
    Fault(
        name="kill Redis",
        roles=("redis",),
        begin=lambda system, role: system.kill(role),
        ends_process=True,
        times=2,
        is_quick=True,
    ),
    Fault(
        name="stop a worker for 20 s",
        roles=QUEUES,
        begin=lambda system, role: system.pause(role),
        end=lambda system, role: system.resume(role),
        hold_seconds=20,
        times=2,
    ),
    Fault(
        name="stop a job process for 20 s",
        roles=("convert", "merge"),
        begin=lambda system, role: system.pause_job(role),
        end=lambda system, role: system.resume(role),
        hold_seconds=20,
    ),
    Fault(
        name="stop an API process for 20 s",
        roles=("api",),
        begin=lambda system, role: system.pause_job(role),
        end=lambda system, role: system.resume(role),
        hold_seconds=20,
    ),
    Fault(
        name="stop Redis for 20 s",
        roles=("redis",),
        begin=lambda system, role: system.pause(role),
        end=lambda system, role: system.resume(role),
        hold_seconds=20,
    ),
    Fault(
        name="cut a worker off Redis for 8 s",
        roles=QUEUES,
        begin=lambda system, role: system.cut(role),
        end=lambda system, role: system.reconnect(role),
        hold_seconds=8,
        needs="network",
    ),
    Fault(
        name="swallow a worker's packets for 20 s",
        roles=QUEUES,
        begin=lambda system, role: system.swallow(role),
        end=lambda system, role: system.reconnect(role),
        hold_seconds=20,
        needs="network",
    ),
    Fault(
        name="delay a worker's packets by 200 ms for 15 s",
        roles=QUEUES,
        begin=lambda system, role: system.delay(role, 0.2),
        end=lambda system, role: system.reconnect(role),
        hold_seconds=15,
        needs="delay",
    ),
    Fault(
        name="full disk for 10 s",
        roles=("volume",),
        begin=lambda system, role: system.volume.fill(),
        end=lambda system, role: system.volume.empty(),
        hold_seconds=10,
        needs="disk",
    ),
    Fault(
        name="slow disk for 10 s",
        roles=("volume",),
        begin=lambda system, role: system.volume.slow(10),
        end=lambda system, role: system.volume.restore_speed(),
        hold_seconds=10,
        needs="disk",
    ),
    Fault(
        name="clock an hour ahead for 10 s",
        roles=("clock",),
        begin=lambda system, role: system.step_clock(CLOCK_STEP_SECONDS),
        end=lambda system, role: system.step_clock(0),
        hold_seconds=10,
        needs="clock",
    ),
    Fault(
        name="clock an hour back for 10 s",
        roles=("clock",),
        begin=lambda system, role: system.step_clock(-CLOCK_STEP_SECONDS),
        end=lambda system, role: system.step_clock(0),
        hold_seconds=10,
        needs="clock",
    ),
)

FAULT_OF_NAME = {fault.name: fault for fault in FAULTS}
