"""The Python client: what it sends, what it makes of answers, and how it follows a job."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from graftwerk.events import Event, read_events
from graftwerk.http import PATIENCE, Graftwerk
from graftwerk.models import ApiError, UnreachableError

JOB = {"id": "j1", "kind": "merge", "status": "queued", "request": {"target": "ab"}}
Handler = Callable[[httpx.Request], httpx.Response]


def job_json(status: str, **more: object) -> dict[str, object]:
    return JOB | {"status": status} | more


def client_of(handler: Handler, api_key: str | None = None) -> Graftwerk:
    transport = httpx.MockTransport(handler)
    return Graftwerk("http://graftwerk.test", api_key, transport=transport, pause=lambda _: None)


def frame(name: str, data: object, event_id: str) -> bytes:
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()


class BrokenStream(httpx.SyncByteStream):
    """Gives its frames and then breaks off, as a connection does whose server was killed."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = frames

    def __iter__(self) -> Iterator[bytes]:
        yield from self.frames
        raise httpx.ReadError("connection reset")


def test_events_have_ids_names_and_joined_data_lines_and_comments_are_left_out() -> None:
    lines = [
        "id: 1-0",
        "event: status",
        "data: {",
        "data: }",
        "",
        ": keep-alive",
        "",
        "data: x",
        "",
        "data: cut",
    ]
    assert list(read_events(lines)) == [Event("1-0", "status", "{\n}"), Event("1-0", "message", "x")]


def test_a_job_is_submitted_as_json_with_an_idempotency_key_and_the_bearer_key() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(202, json=job_json("queued", links={"self": "/api/jobs/j1"}))

    job = client_of(handler, api_key="secret").submit({"kind": "merge"})
    assert (seen[0].method, seen[0].url.path, json.loads(seen[0].content)) == (
        "POST",
        "/api/jobs",
        {"kind": "merge"},
    )
    assert seen[0].headers["Authorization"] == "Bearer secret"
    assert len(seen[0].headers["Idempotency-Key"]) == 36
    assert (job.id, job.title, job.ended) == ("j1", "merge → ab", False)
    assert job.model_dump()["links"] == {"self": "/api/jobs/j1"}


def test_a_plan_is_asked_for_with_dry_run_and_queues_nothing() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.params["dry_run"] == "true"
        return httpx.Response(200, json={"output_bytes": 3})

    assert client_of(handler).plan({"kind": "merge"}) == {"output_bytes": 3}


def test_a_problem_becomes_an_error_with_code_detail_hint_and_status() -> None:
    problem = {"code": "wrong_adapter_order", "detail": "a comes first", "hint": "swap them", "status": 422}
    with pytest.raises(ApiError) as caught:
        client_of(lambda _: httpx.Response(422, json=problem)).submit({})
    error = caught.value
    assert (error.code, error.detail, error.hint, error.status) == (
        "wrong_adapter_order",
        "a comes first",
        "swap them",
        422,
    )


def test_an_error_without_a_problem_body_still_says_what_http_said() -> None:
    with pytest.raises(ApiError) as caught:
        client_of(lambda _: httpx.Response(502, text="<html>")).models()
    assert (caught.value.code, caught.value.detail) == ("http_502", "Bad Gateway")


def test_a_service_that_is_not_there_is_unreachable_with_a_hint() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError) as caught:
        client_of(handler).job("j1")
    assert caught.value.detail == "no Graftwerk answers at http://graftwerk.test (refused)"
    assert "graftwerk serve" in caught.value.hint


@pytest.mark.parametrize("body", ["<html>", "[]", '{"id": "j1"}'])
def test_an_answer_of_another_service_is_told_as_such(body: str) -> None:
    with pytest.raises(UnreachableError, match="not as Graftwerk does"):
        client_of(lambda _: httpx.Response(200, text=body)).job("j1")


def test_half_a_character_in_a_request_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ApiError, match="half a character"):
        client_of(lambda _: httpx.Response(200)).submit({"prompt": "\udce4"})


def test_names_and_ids_cannot_leave_their_place_in_the_path() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path.decode())
        return httpx.Response(204)

    client_of(handler).delete_model("../jobs")
    assert seen == ["/api/models/..%2Fjobs"]


def test_a_job_is_followed_by_its_events_to_its_end() -> None:
    progress = {
        "stage": "writing",
        "done": 1,
        "total": 4,
        "unit": "bytes",
        "fraction": 0.25,
        "eta_seconds": 3,
    }
    frames = [
        frame("status", job_json("running"), "1-0"),
        frame("progress", {"id": "j1", "progress": progress}, "2-0"),
        frame("status", job_json("succeeded", result={"ok": True}), "3-0"),
    ]
    jobs = list(client_of(lambda _: httpx.Response(200, content=b"".join(frames))).follow("j1"))
    assert [job.status for job in jobs] == ["running", "running", "succeeded"]
    assert jobs[1].progress is not None
    assert (jobs[1].progress.stage, jobs[1].progress.fraction) == ("writing", 0.25)
    assert jobs[2].result == {"ok": True}


def test_a_broken_stream_is_bridged_by_asking_and_taken_up_after_the_last_event() -> None:
    last_ids: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=job_json("running"))
        last_ids.append(request.headers.get("Last-Event-ID"))
        if len(last_ids) == 1:
            return httpx.Response(200, stream=BrokenStream(frame("status", job_json("running"), "7-1")))
        return httpx.Response(200, content=frame("status", job_json("succeeded"), "8-0"))

    assert client_of(handler).wait("j1").status == "succeeded"
    assert last_ids == [None, "7-1"]


def test_without_any_stream_a_job_is_polled_to_its_end() -> None:
    answers = iter(["queued", "running", "failed"])

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(502)
        return httpx.Response(200, json=job_json(next(answers)))

    assert [job.status for job in client_of(handler).follow("j1")] == ["queued", "running", "failed"]


def test_a_service_that_restarts_meanwhile_does_not_end_the_following() -> None:
    asked = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        if request.url.path.endswith("/events"):
            raise httpx.ConnectError("refused")
        asked += 1
        if asked < PATIENCE:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=job_json("succeeded"))

    assert client_of(handler).wait("j1").status == "succeeded"


def test_a_service_that_stays_away_ends_the_following() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError):
        client_of(handler).wait("j1")


def test_a_job_that_is_not_known_ends_the_following_at_once() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(404, json={"code": "job_not_found", "detail": "no job j1", "hint": ""})

    with pytest.raises(ApiError, match="no job j1"):
        client_of(handler).wait("j1")
    assert asked == ["/api/jobs/j1/events", "/api/jobs/j1"]
