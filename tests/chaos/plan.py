"""The plan of a run: jobs and faults from a seed. The same seed, minutes and jobs give the same plan."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random
from uuid import UUID, uuid5

from tests.chaos.faults import FAULT_OF_NAME, FAULTS, Fault
from tests.chaos.recipes import CROWDS, RECIPES, SLOW_RECIPES, offered

NAMESPACE = UUID("6a3f0c52-92a8-5a5e-8f43-0a6e8ce0b7d1")
CANCELED_SHARE, FOLLOWED_SHARE, POISON_SHARE = 0.08, 0.5, 0.015
PAUSE_SECONDS = (2.0, 6.0)
"""Range of the pause before a fault."""

TARGET_WAIT_SECONDS = 2.0
"""Typical wait for a running job, for the length of the plan only."""

LEAST_MINUTES = 3.0
"""Shorter runs have quick faults only."""


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """One job: `at` and `cancel_after` in seconds, `after` the number of the job that it depends on."""

    number: int
    id: str
    recipe: str
    at: float
    after: int | None = None
    cancel_after: float | None = None
    is_poison: bool = False

    @property
    def target(self) -> str:
        """Name of the model that the job makes."""
        return f"made-{self.number}"


@dataclass(frozen=True, kw_only=True)
class PlannedFault:
    """One fault, `pause` seconds after the end of the one before it; `baits` are submitted first and run when it hits.

    With `is_apart` they are submitted after all jobs of the faults before it have ended.
    """

    name: str
    role: str
    pause: float
    is_apart: bool = False
    baits: tuple[PlannedJob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Jobs in the order of their submission, and faults one after another, some with a job of their own."""

    seed: int
    minutes: float
    jobs: Sequence[PlannedJob]
    faults: Sequence[PlannedFault]

    @property
    def all_jobs(self) -> list[PlannedJob]:
        """The jobs, and those of the faults."""
        return [*self.jobs, *(bait for fault in self.faults for bait in fault.baits)]

    @property
    def recipes(self) -> list[str]:
        """Names of the recipes that the plan uses, in the order of the table."""
        used = {job.recipe for job in self.all_jobs}
        return [name for name in RECIPES if name in used]


def make_plan(
    seed: int, minutes: float, jobs: int, engine: str = "auto", named: Sequence[tuple[str, str]] = ()
) -> Plan:
    """Returns the plan of a run; the jobs of the faults are among the number of jobs.

    Args:
        named: Faults and their roles in place of those by the seed.
    """
    random = Random(seed)
    faults = []
    left = jobs
    chosen = [
        PlannedFault(name=name, role=role, pause=PAUSE_SECONDS[0], is_apart=True) for name, role in named
    ]
    for fault in chosen or _faults(random, minutes):
        recipes = _baits(fault, engine)[:left]
        baits = tuple(
            PlannedJob(number=number, id=_id(seed, number), recipe=recipe, at=0)
            for number, recipe in enumerate(recipes, left - len(recipes))
        )
        faults.append(replace(fault, baits=baits))
        left -= len(recipes)
    names = offered(engine)
    return Plan(
        seed=seed,
        minutes=minutes,
        jobs=list(_jobs(random, seed, minutes * 60, left, names)),
        faults=faults,
    )


def _baits(fault: PlannedFault, engine: str) -> Sequence[str]:
    """Returns the recipes of the jobs that run when a fault hits."""
    if FAULT_OF_NAME[fault.name].meets_crowd and (engine, fault.role) in CROWDS:
        return CROWDS[engine, fault.role]
    return [SLOW_RECIPES[fault.role]] if fault.role in SLOW_RECIPES else []


def _jobs(
    random: Random, seed: int, seconds: float, count: int, offered: Sequence[str]
) -> Iterable[PlannedJob]:
    names = [name for name in offered if RECIPES[name].share]
    weights = [RECIPES[name].share for name in names]
    followers = [name for name in offered if RECIPES[name].follows]
    each = random.sample(names, len(names)) if count >= 3 * len(names) else []
    number = 0
    while number < count:
        recipe = each.pop() if each else random.choices(names, weights)[0]
        at = number / count * seconds
        job = _job(random, seed, number, recipe, at)
        yield job
        number += 1
        following = [name for name in followers if RECIPES[name].follows == recipe]
        for name in following if random.random() < FOLLOWED_SHARE else []:
            if number < count:
                yield PlannedJob(number=number, id=_id(seed, number), recipe=name, at=at, after=job.number)
                number += 1


def _job(random: Random, seed: int, number: int, recipe: str, at: float) -> PlannedJob:
    is_poison = RECIPES[recipe].is_slow and random.random() < POISON_SHARE * 4
    is_canceled = not is_poison and random.random() < CANCELED_SHARE
    wait = round(random.uniform(0.0, 3.0), 2) if is_canceled else None
    return PlannedJob(
        number=number, id=_id(seed, number), recipe=recipe, at=at, cancel_after=wait, is_poison=is_poison
    )


def _id(seed: int, number: int) -> str:
    return str(uuid5(NAMESPACE, f"{seed}/{number}"))


def _faults(random: Random, minutes: float) -> Iterable[PlannedFault]:
    """Yields whole rounds of the table, each shuffled, until the time is used up."""
    seconds_left = minutes * 60
    table: list[Fault] = [
        fault for fault in FAULTS if minutes >= LEAST_MINUTES or fault.is_quick for _ in range(fault.times)
    ]
    while True:
        for fault in random.sample(table, len(table)):
            pause = round(random.uniform(*PAUSE_SECONDS), 1)
            seconds_left -= pause + fault.hold_seconds + TARGET_WAIT_SECONDS
            if seconds_left < 0:
                return
            yield PlannedFault(name=fault.name, role=random.choice(fault.roles), pause=pause)
