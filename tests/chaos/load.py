"""The load: submits the planned jobs, cancels some, follows the text of those that generate."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.chaos.api import Api, RefusedError, UnexpectedAnswerError
from tests.chaos.plan import Plan, PlannedJob
from tests.chaos.recipes import MINIATURE, RECIPES, Json
from tests.chaos.recorder import ENDED

THREADS = 24
FOLLOW_SECONDS = 600.0

UPLOAD_TRIES = 4
UPLOAD_PAUSE_SECONDS = 5.0
"""Pause before another upload: while the clock is ahead, each one expires at once."""

UPLOAD_GONE = ("upload_not_found", "404")
"""Codes of an upload that has expired; a response to HEAD has no body."""


@dataclass(slots=True, kw_only=True)
class Submitted:
    """One job of the load.

    Attributes:
        planned: the job's part of the plan.
        refused: code of the refusal, None for an accepted job.
        streamed: text of each output, joined from `token` events; None if the stream was not followed.
        problems: answers that no fault explains.
    """

    planned: PlannedJob
    submitted_at: float
    refused: str | None = None
    cancel_requested: bool = False
    streamed: dict[int, str] | None = None
    problems: list[str] = field(default_factory=list)


def request_of(job: PlannedJob, upload_ids: list[str]) -> Json:
    """Returns the request of a planned job."""
    recipe = RECIPES[job.recipe]
    request: Json = {**recipe.request, "metadata": {"recipe": job.recipe}}
    if recipe.makes:
        request["target"] = job.target
    if upload_ids:
        request["source"] = {"upload": upload_ids}
    return request


class Load:
    """Runs the jobs of a plan; `finish` returns what has become of them. `writing` are the jobs with some text."""

    def __init__(self, api: Api, plan: Plan) -> None:
        self.api = api
        self.plan = plan
        self.writing: set[str] = set()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="load")
        self._followers = ThreadPoolExecutor(2 * THREADS, thread_name_prefix="follower")
        self._jobs: dict[int, Future[Submitted]] = {}

    def run(self) -> None:
        """Submits every job at its time; returns after the last one has been given to a thread."""
        started = time.monotonic()
        for job in self.plan.jobs:
            time.sleep(max(0.0, started + job.at - time.monotonic()))
            self.submit(job)

    def submit(self, job: PlannedJob) -> None:
        """Gives a job to a thread."""
        self._jobs[job.number] = self._pool.submit(self._submit, job)

    def finish(self) -> list[Submitted]:
        """Returns all jobs in the order of the plan, after their submissions and streams have ended."""
        jobs = [future.result(FOLLOW_SECONDS) for _, future in sorted(self._jobs.items())]
        self._pool.shutdown()
        self._followers.shutdown()
        return jobs

    def _submit(self, job: PlannedJob) -> Submitted:
        submitted = Submitted(planned=job, submitted_at=time.monotonic())
        try:
            self._send(submitted)
            self._cancel(submitted)
        except UnexpectedAnswerError as error:
            submitted.problems.append(str(error))
        return submitted

    def _send(self, submitted: Submitted) -> None:
        """Uploads and submits, again if the upload has expired meanwhile: the clock may be ahead."""
        for _ in range(UPLOAD_TRIES):
            try:
                submitted.refused = None
                self._send_once(submitted)
                return
            except RefusedError as error:
                submitted.refused = error.code
                if error.code not in UPLOAD_GONE:
                    return
                time.sleep(UPLOAD_PAUSE_SECONDS)

    def _send_once(self, submitted: Submitted) -> None:
        job = submitted.planned
        recipe = RECIPES[job.recipe]
        uploads = [self.api.upload(MINIATURE / name) for name in recipe.uploads]
        request = request_of(job, uploads)
        if job.after is not None:
            upstream = self._jobs[job.after].result(FOLLOW_SECONDS)
            request |= {"after": [upstream.planned.id], recipe.reads: upstream.planned.target}
        response = self.api.send("PUT", f"/api/jobs/{job.id}", json=request)
        if not response.is_success:
            raise RefusedError(response)
        self._follow(submitted)

    def _follow(self, submitted: Submitted) -> None:
        if RECIPES[submitted.planned.recipe].request["kind"] == "generate":
            self._followers.submit(self._collect, submitted)

    def _collect(self, submitted: Submitted) -> None:
        """Joins the job's text, over broken connections, until its end."""
        texts: dict[int, str] = {}
        last_id: str | None = None
        deadline = time.monotonic() + FOLLOW_SECONDS
        while time.monotonic() < deadline:
            for event_id, name, data in self.api.events(submitted.planned.id, last_id):
                last_id = event_id or last_id
                if name == "token":
                    text = texts.get(data["index"], "")
                    texts[data["index"]] = text[: data["offset"]] + data["text"]
                    self.writing.add(submitted.planned.id)
                elif name == "status" and data["status"] in ENDED:
                    submitted.streamed = texts
                    return
            time.sleep(0.2)

    def _cancel(self, submitted: Submitted) -> None:
        wait = submitted.planned.cancel_after
        if wait is None or submitted.refused is not None:
            return
        time.sleep(wait)
        submitted.cancel_requested = True
        response = self.api.send("POST", f"/api/jobs/{submitted.planned.id}/cancel")
        if not response.is_success and response.json().get("code") != "job_already_ended":
            submitted.problems.append(f"cancel: {response.status_code} {response.text[:300]}")
