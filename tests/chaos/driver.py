"""One run: start, undisturbed references, load with faults, settling, account."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import psutil
from redis import Redis
from redis.exceptions import RedisError

from tests.chaos.accounting import LEFT_FOLDERS, Account, Evidence, account
from tests.chaos.api import Api
from tests.chaos.dialogue import Dialogue
from tests.chaos.faults import FAULT_OF_NAME
from tests.chaos.load import Load, Submitted
from tests.chaos.plan import Plan, PlannedFault, PlannedJob
from tests.chaos.recipes import DIALOGUE_MODELS, RECIPES, roles_of
from tests.chaos.recorder import ENDED, Recorder
from tests.chaos.recovery import BackProbe, Done, describe
from tests.chaos.redis_keys import KeyCount, count_keys
from tests.chaos.references import Reference, prepare, run, run_recipe
from tests.chaos.renames import Renames
from tests.chaos.system import System

VICTIM_SECONDS = {"vllm-cpu": 180.0}
DEFAULT_VICTIM_SECONDS = 30.0
"""Longest wait for the jobs of a fault to run, by the engine's setting: the real vLLM starts in half a minute."""

POLL_SECONDS = 0.02

SETTLE_SECONDS = 600.0
LEFTOVER_SECONDS = 120.0
VERIFIERS = 8

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything that the report of a run states."""

    plan: Plan
    account: Account
    faults: Sequence[Done]
    recorder: Recorder
    keys: Sequence[KeyCount]
    missing: dict[str, str]
    dialogue: Dialogue
    seconds: float


class Run:
    """The parts of one run while its service is up."""

    def __init__(self, plan: Plan, system: System, say: Say) -> None:
        self.plan = plan
        self.system = system
        self.say = say
        self.api = Api(system.url)
        self.redis = Redis(port=system.redis_port, protocol=2, socket_timeout=10)
        self.recorder = Recorder(system.redis_port)
        self.probe = BackProbe(system, self.api.is_alive)
        self.faults: list[Done] = []
        self.other_jobs = 0
        self._queues = {job.id: RECIPES[job.recipe].queue for job in plan.all_jobs}
        self._roles = {job.id: roles_of(job.recipe, system.engine) for job in plan.all_jobs}
        self._poison = {job.id for job in plan.all_jobs if job.is_poison}
        self._probes = ThreadPoolExecutor(8, thread_name_prefix="probe")
        self.recorder.listeners.append(self._kill_poison)

    # ---- phases ---------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Runs all phases and returns the outcome."""
        models = self.system.volume.root
        references = self._references()
        renames = Renames(models)
        dialogue = Dialogue(self.api, self.system.url, DIALOGUE_MODELS.get(self.system.engine, "merged"))
        dialogue.start()
        started = time.monotonic()
        self.load = Load(self.api, self.plan)
        faults = threading.Thread(target=self._do_faults, name="faults")
        faults.start()
        self.load.run()
        faults.join()
        self._probes.shutdown()
        seconds = time.monotonic() - started
        jobs = self.load.finish()
        dialogue.finish()
        self._settle(jobs)
        renames.close()
        evidence = Evidence(
            api=self.api, models=models, recorder=self.recorder, jobs=jobs,
            faults=self.faults, references=references, renames=renames.counts,
        )  # fmt: skip
        found = account(evidence)
        found.problems += dialogue.problems
        self._verify(found, jobs)
        _wait(self._is_clean, LEFTOVER_SECONDS)
        keys, problems = count_keys(self.redis, self.redis.zcard("graftwerk:jobs"))
        found.problems += problems
        self.recorder.close()
        return Outcome(
            plan=self.plan, account=found, faults=self.faults, recorder=self.recorder, keys=keys,
            missing=self.system.missing, dialogue=dialogue, seconds=seconds,
        )  # fmt: skip

    def _references(self) -> dict[str, Reference]:
        models = self.system.volume.root
        self.other_jobs = len(prepare(self.api, models))
        self.say("The inputs are on the volume.")
        references = {}
        for name in self.plan.recipes:
            _, references[name] = run_recipe(self.api, models, name)
        self.say(f"{len(references)} kinds of request have run undisturbed.")
        return references

    def _settle(self, jobs: Sequence[Submitted]) -> None:
        """Waits until all jobs have ended and the janitor has cleaned up."""
        accepted = [job.planned.id for job in jobs if job.refused is None and not job.problems]
        self.say(f"{len(accepted)} of {len(jobs)} jobs were accepted; waiting for their end.")
        _wait(lambda: all(self._has_ended(id) for id in [*accepted, *self.recorder.statuses]), SETTLE_SECONDS)
        _wait(self._is_clean, LEFTOVER_SECONDS)

    def _has_ended(self, job_id: str) -> bool:
        return self.recorder.status(job_id) in ENDED

    def _is_clean(self) -> bool:
        folders = [self.system.volume.root / name for name in LEFT_FOLDERS]
        left = [entry for folder in folders if folder.is_dir() for entry in folder.iterdir()]
        with suppress(RedisError):
            return all(entry.name == ".lock" for entry in left) and not self.redis.exists("graftwerk:active")
        return False

    def _verify(self, found: Account, jobs: Sequence[Submitted]) -> None:
        """Lets the service verify every model that was published, against its manifest."""
        made = [job.planned for job in jobs if (self.system.volume.root / job.planned.target).is_dir()]
        with ThreadPoolExecutor(VERIFIERS) as pool:
            verdicts = pool.map(lambda job: run(self.api, {"kind": "verify", "model": job.target}), made)
        for job, verdict in zip(made, verdicts, strict=True):
            if not verdict["result"]["passed"]:
                found.problems.append(
                    f"job {job.number}: {job.target} is not as its manifest says: {verdict}"
                )

    # ---- faults ---------------------------------------------------------------------------------------

    def _do_faults(self) -> None:
        for number, fault in enumerate(self.plan.faults):
            time.sleep(fault.pause)
            if fault.is_apart:
                earlier = [bait for done in self.plan.faults[:number] for bait in done.baits]
                _wait(
                    lambda earlier=earlier: all(self._has_ended(bait.id) for bait in earlier), SETTLE_SECONDS
                )
            for bait in fault.baits:
                self.load.submit(bait)
            if FAULT_OF_NAME[fault.name].needs not in self.system.missing:
                self._do(fault)

    def _do(self, planned: PlannedFault) -> None:
        fault = FAULT_OF_NAME[planned.name]
        victims = self._await_victims(planned)
        before = self.probe.identity(planned.role) if fault.ends_process else set()
        begun_at = time.monotonic()
        problem = None
        try:
            fault.begin(self.system, planned.role)
            time.sleep(fault.hold_seconds)
        except (psutil.NoSuchProcess, OSError) as error:
            problem = str(error)
        finally:
            fault.end(self.system, planned.role)
        done = Done(
            name=planned.name, role=planned.role, begun_at=begun_at, ended_at=time.monotonic(),
            victims=victims, problem=problem,
        )  # fmt: skip
        self.faults.append(done)
        self._probes.submit(self._probe, done, before=before, ends_process=fault.ends_process)

    def _probe(self, done: Done, *, before: set[str], ends_process: bool) -> None:
        if ends_process and done.problem is None:
            done.back_seconds = self.probe.wait(done.role, before)
        self.say(describe(done))

    def _await_victims(self, planned: PlannedFault) -> list[str]:
        """Returns the running jobs of a role, after the fault's own jobs have been seen to run."""
        if not planned.baits:
            return []
        seconds = VICTIM_SECONDS.get(self.system.engine, DEFAULT_VICTIM_SECONDS)
        deadline = time.monotonic() + seconds
        for bait in planned.baits:
            while not self._has_begun(bait) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        return [job for job in self.recorder.running() if planned.role in self._roles.get(job, ())]

    def _has_begun(self, job: PlannedJob) -> bool:
        """Returns True for a job that runs and has written some text, if it writes any, or that has ended."""
        if self.recorder.status(job.id) != "running":
            return self._has_ended(job.id)
        return job.id in self.load.writing or RECIPES[job.recipe].request["kind"] != "generate"

    def _kill_poison(self, job_id: str, status: str) -> None:
        """Kills the process of a job that is poison, whenever it starts."""
        if status != "running" or job_id not in self._poison:
            return
        queue = self._queues[job_id]
        begun_at = time.monotonic()
        victims = [job for job in self.recorder.running() if self._queues.get(job) == queue]
        with suppress(psutil.NoSuchProcess):
            (self.system.kill if queue == "generate" else self.system.kill_job)(queue)
            done = Done(name="poison job", role=queue, begun_at=begun_at, ended_at=begun_at, victims=victims)
            self.faults.append(done)


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
