"""Account of a run: every job, every model, every text, and everything that is left."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.api import Api, UnexpectedAnswerError
from tests.chaos.decisive_parts import decisive
from tests.chaos.load import Submitted
from tests.chaos.recipes import RECIPES, Json
from tests.chaos.recorder import ENDED, Recorder
from tests.chaos.recovery import Done
from tests.chaos.references import Reference, digests

MOST_EXECUTIONS = 3
DISK_FAULT = "full disk"
DISK_GRACE_SECONDS = 60.0
"""Time after a full disk in which a job may still fail by it: it may have been submitted or begun meanwhile."""

RETRIED_CODES = ("worker_died", "not_ready")
"""Codes of jobs that have run three times: a process died each time, or Redis did not answer."""

DISK_CODES = ("disk_full", "volume_unavailable")
LEFT_FOLDERS = (".staging", ".uploads", ".trash")


@dataclass(slots=True)
class Account:
    """Counts and problems of a run; a run without problems has passed."""

    problems: list[str] = field(default_factory=list)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    models: int = 0
    texts: int = 0
    streams: int = 0
    executions: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything that an account is made of."""

    api: Api
    models: Path
    recorder: Recorder
    jobs: Sequence[Submitted]
    faults: Sequence[Done]
    references: Mapping[str, Reference]
    renames: Mapping[str, int]


def account(evidence: Evidence) -> Account:
    """Returns the account of all jobs of the load."""
    found = Account()
    ended = _read_ended(found, evidence)
    for job in evidence.jobs:
        found.problems += [f"job {job.planned.number}: {problem}" for problem in job.problems]
        if job.planned.number in ended:
            _check_ended(found, evidence, job, ended[job.planned.number])
        elif job.refused is not None:
            _check_refused(found, evidence, job, ended)
    _check_others(found, evidence)
    _check_leftovers(found, evidence)
    errors = evidence.api.server_errors
    if errors:
        found.problems.append(f"the API answered 500 {len(errors)} times, first to {errors[0]}")
    return found


def _read_ended(found: Account, evidence: Evidence) -> dict[int, Json]:
    """Returns the accepted jobs by number; one that the service does not know any more is a problem."""
    ended = {}
    for job in evidence.jobs:
        if job.refused is None and not job.problems:
            try:
                ended[job.planned.number] = evidence.api.job(job.planned.id)
            except UnexpectedAnswerError as error:
                found.problems.append(f"job {job.planned.number} ({job.planned.recipe}) is lost: {error}")
    return ended


def _check_others(found: Account, evidence: Evidence) -> None:
    """Checks the jobs of no plan, those of `/v1/responses`: each has one end."""
    planned = {job.planned.id for job in evidence.jobs}
    for job_id in [*evidence.recorder.statuses]:
        ends = evidence.recorder.ends(job_id)
        if job_id not in planned and len(ends) != 1:
            found.problems.append(f"job {job_id} of no plan has the terminal events {ends}")


def _check_ended(found: Account, evidence: Evidence, submitted: Submitted, job: Json) -> None:
    planned = submitted.planned
    prefix = f"job {planned.number} ({planned.recipe}, {planned.id})"
    code = job["error"]["code"] if job["error"] else ""
    found.outcomes[job["status"], code] += 1
    found.executions += evidence.recorder.executions(planned.id)
    ends = evidence.recorder.ends(planned.id)
    if ends != [job["status"]]:
        found.problems.append(f"{prefix} is {job['status']}, its terminal events are {ends}")
    if not _is_lawful(evidence, submitted, job["status"], code):
        found.problems.append(f"{prefix} is {job['status']}: {job['error']}, which no fault explains")
    problems = _model_problems if RECIPES[planned.recipe].makes else _result_problems
    found.problems += [f"{prefix}: {problem}" for problem in problems(found, evidence, submitted, job)]


def _is_lawful(evidence: Evidence, submitted: Submitted, status: str, code: str) -> bool:
    if status not in ENDED:
        return False
    if status == "succeeded":
        return True
    if status == "canceled":
        return submitted.cancel_requested
    if code in RETRIED_CODES:
        return evidence.recorder.executions(submitted.planned.id) >= MOST_EXECUTIONS
    if code in DISK_CODES:
        return _disk_was_full(evidence, submitted)
    return code == "upstream_failed" and submitted.planned.after is not None


def _disk_was_full(evidence: Evidence, submitted: Submitted) -> bool:
    statuses = evidence.recorder.statuses[submitted.planned.id]
    last = statuses[-1].at if statuses else submitted.submitted_at
    return any(
        fault.name.startswith(DISK_FAULT)
        and submitted.submitted_at < fault.ended_at + DISK_GRACE_SECONDS
        and fault.begun_at < last + DISK_GRACE_SECONDS
        for fault in evidence.faults
    )


def _check_refused(
    found: Account, evidence: Evidence, submitted: Submitted, ended: Mapping[int, Json]
) -> None:
    planned = submitted.planned
    code = str(submitted.refused)
    found.outcomes["refused", code] += 1
    upstream = ended.get(planned.after) if planned.after is not None else None
    upstream_is_gone = planned.after is not None and (upstream is None or upstream["status"] != "succeeded")
    if not (upstream_is_gone or (code in DISK_CODES and _disk_was_full(evidence, submitted))):
        found.problems.append(f"job {planned.number} ({planned.recipe}) was refused: {code}")


# ---- results ------------------------------------------------------------------------------------------


def _model_problems(found: Account, evidence: Evidence, submitted: Submitted, job: Json) -> list[str]:
    folder = evidence.models / submitted.planned.target
    renames = evidence.renames.get(folder.name, 0)
    if job["status"] != "succeeded":
        return [f"{folder.name} was published"] if folder.exists() or renames else []
    problems = [] if renames == 1 else [f"{folder.name} was published {renames} times"]
    expected = evidence.references[submitted.planned.recipe].digests
    if digests(folder) != expected:
        problems.append(f"the files of {folder.name} are not those of the undisturbed run")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["job_id"] != submitted.planned.id:
        problems.append(f"the manifest of {folder.name} names job {manifest['job_id']}")
    found.models += 1
    return problems


def _result_problems(found: Account, evidence: Evidence, submitted: Submitted, job: Json) -> list[str]:
    if job["status"] != "succeeded":
        return []
    kind = job["kind"]
    result, expected = (
        decisive(submitted.planned.recipe, job["result"]),
        evidence.references[submitted.planned.recipe].result,
    )
    if result != expected:
        return [f"the result is {str(result)[:200]}, of the undisturbed run {str(expected)[:200]}"]
    found.texts += kind in ("generate", "compare")
    return _stream_problems(found, submitted, job) if kind == "generate" else []


def _stream_problems(found: Account, submitted: Submitted, job: Json) -> list[str]:
    texts = {number: output["text"] for number, output in enumerate(job["result"]["outputs"])}
    streamed = submitted.streamed
    if streamed is None or {**dict.fromkeys(texts, ""), **streamed} != texts:
        return [f"the streamed text is {streamed}, the result's {texts}"]
    found.streams += 1
    return []


def _check_leftovers(found: Account, evidence: Evidence) -> None:
    for name in LEFT_FOLDERS:
        folder = evidence.models / name
        left = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        left = [entry for entry in left if entry != ".lock"]
        if left:
            found.problems.append(f"{name} still has {', '.join(left[:5])}")
