"""Several jobs that are followed together."""

import json
from typing import Any

import httpx
import pytest
from graftwerk import Client, UnreachableError
from graftwerk.models import Job

from tests.client_service import Run

Event = tuple[str, dict[str, Any]]


def state(name: str, status: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "kind": "merge", "status": status, "request": {"target": f"t-{name}"}, **more}


def progress(name: str, done: int) -> Event:
    return "progress", {"id": name, "progress": {"stage": "s", "done": done, "total": 4, "unit": "tensors"}}


class Streams:
    """A service whose streams of all events are written out, and which knows each job's present state."""

    def __init__(self, *streams: list[Event] | Exception, present: list[dict[str, Any]]) -> None:
        self.streams = list(streams)
        self.present = {job["id"]: job for job in present}
        self.resumed_after: list[str | None] = []
        self.canceled: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        parts = request.url.path.split("/")[2:]
        if parts == ["events"]:
            self.resumed_after.append(request.headers.get("Last-Event-ID"))
            return self._stream(self.streams.pop(0) if self.streams else httpx.ReadTimeout("silent"))
        if parts == ["jobs"]:
            status = request.url.params["status"]
            return httpx.Response(
                200, json={"jobs": [j for j in self.present.values() if j["status"] == status]}
            )
        if parts[-1] == "cancel":
            self.canceled.append(parts[1])
        return httpx.Response(200, json=self.present[parts[1]])

    def _stream(self, events: list[Event] | Exception) -> httpx.Response:
        if isinstance(events, Exception):
            raise events
        frames = (
            f"id: {number}-0\nevent: {name}\ndata: {json.dumps(data)}\n\n"
            for number, (name, data) in enumerate(events, 1)
        )
        return httpx.Response(200, text="".join(frames), headers={"Content-Type": "text/event-stream"})


def followed(
    service: Streams, *jobs: dict[str, Any], with_new: bool = False
) -> list[tuple[str, str, int | None]]:
    """Returns id, status and amount of each change."""
    with Client("http://x", transport=httpx.MockTransport(service), pause=lambda _: None) as client:
        group = client.group([Job.model_validate(job) for job in jobs], with_new=with_new)
        return [(job.id, job.status, job.progress.done if job.progress else None) for job in group.changes()]


def test_each_change_of_the_jobs_is_reported_until_all_have_ended() -> None:
    service = Streams(
        [
            ("status", state("a", "running")),
            progress("a", 1),
            progress("other", 3),
            ("status", state("other", "succeeded")),
            ("status", state("a", "succeeded")),
            ("status", state("b", "failed")),
            ("status", state("b", "running")),
        ],
        present=[],
    )
    assert followed(service, state("a", "queued"), state("b", "queued")) == [
        ("a", "queued", None),
        ("b", "queued", None),
        ("a", "running", None),
        ("a", "running", 1),
        ("a", "succeeded", None),
        ("b", "failed", None),
    ]


def test_jobs_that_are_submitted_meanwhile_are_added() -> None:
    events: list[Event] = [("status", state("new", "queued")), ("status", state("a", "succeeded")), ("status", state("new", "canceled"))]  # fmt: skip
    assert followed(Streams(events, present=[]), state("a", "running"), with_new=True)[1:] == [
        ("new", "queued", None),
        ("a", "succeeded", None),
        ("new", "canceled", None),
    ]


def test_a_broken_stream_is_resumed_and_a_lost_end_is_found() -> None:
    service = Streams(
        [progress("a", 1), progress("a", 2)],
        httpx.ReadTimeout("silent"),
        present=[state("a", "running"), state("b", "succeeded")],
    )
    changes = []
    with Client("http://x", transport=httpx.MockTransport(service), pause=lambda _: None) as client:
        group = client.group([Job.model_validate(state(name, "running")) for name in ("a", "b")])
        for job in group.changes():
            changes.append((job.id, job.status))
            if len(service.resumed_after) == 2:
                service.present["a"] = state("a", "succeeded")
    assert changes[-1] == ("a", "succeeded")
    assert ("b", "succeeded") in changes
    assert service.resumed_after[:2] == [None, "2-0"]


def test_an_event_of_the_past_reopens_no_job() -> None:
    service = Streams(
        [progress("b", 1)],
        [("status", state("a", "running")), ("status", state("b", "succeeded"))],
        present=[state("a", "succeeded"), state("b", "running")],
    )
    changes = followed(service, state("a", "running"), state("b", "running"))
    assert [status for name, status, _ in changes if name == "a"] == ["running", "succeeded"]


def test_a_service_that_is_gone_ends_the_wait() -> None:
    def gone(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with (
        Client("http://x", transport=httpx.MockTransport(gone), pause=lambda _: None) as client,
        pytest.raises(UnreachableError),
    ):
        list(client.group([Job.model_validate(state("a", "running"))]).changes())


def install(monkeypatch: pytest.MonkeyPatch, service: Streams) -> None:
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(service))


def test_watch_of_several_jobs_ends_with_the_code_of_the_first_failure(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    error = {"code": "disk_full", "message": "3 GB are missing.", "hint": "Delete a model."}
    present = [state("a", "succeeded"), state("b", "canceled"), state("c", "failed", error=error)]
    install(monkeypatch, Streams([], present=present))
    result = run("jobs", "watch", "a", "b", "c", "a")
    assert result.exit_code == 130
    assert result.stdout == "merge → t-a succeeded.\n"
    assert result.stderr.splitlines()[-3:] == [
        "merge → t-b: canceled",
        "error: merge → t-c: 3 GB are missing. [disk_full]",
        "       Delete a model.",
    ]
    assert run("jobs", "watch", "a", "c").exit_code == 1
    documents = json.loads(run("jobs", "watch", "a", "b", "--json").stdout)
    assert [(job["id"], job["status"]) for job in documents] == [("a", "succeeded"), ("b", "canceled")]


def test_watch_without_an_id_follows_all_unfinished_jobs(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    present = [state("q", "queued"), state("r", "running"), state("s", "succeeded")]
    service = Streams(
        [("status", state("r", "succeeded")), ("status", state("q", "succeeded"))], present=present
    )
    install(monkeypatch, service)
    result = run("jobs", "watch")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "merge → t-r  running",
        "merge → t-q  queued",
        "merge → t-r  succeeded",
        "merge → t-q  succeeded",
    ]
    install(monkeypatch, Streams([], present=[]))
    nothing = run("jobs", "watch")
    assert (nothing.exit_code, nothing.stderr) == (0, "No unfinished jobs.\n")


def test_ctrl_c_while_several_jobs_are_watched_cancels_the_last_first(
    monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    from graftwerk.job_group import JobGroup

    changes, interrupts = JobGroup.changes, iter([True])

    def once_interrupted(group: JobGroup) -> Any:
        if next(interrupts, False):
            raise KeyboardInterrupt
        return changes(group)

    ends: list[Event] = [("status", state(name, "canceled")) for name in ("a", "b")]
    service = Streams(ends, present=[state("a", "running"), state("b", "queued")])
    install(monkeypatch, service)
    monkeypatch.setattr(JobGroup, "changes", once_interrupted)
    asked = []
    monkeypatch.setattr("graftwerk.interruption.ask", lambda subject: asked.append(subject) or "cancel")
    assert run("jobs", "watch", "a", "b").exit_code == 130
    assert asked == ["the 2 jobs"]
    assert service.canceled == ["b", "a"]
