"""The Python client: requests, responses, errors and events."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from graftwerk import ApiError, Client, Job, TokenPiece, UnreachableError, WaitTimeoutError
from graftwerk.inference_results import GenerateResult
from graftwerk.protocol import MAX_FAILURES

JOB = {"id": "j1", "kind": "merge", "status": "queued", "request": {"target": "ab"}}
Handler = Callable[[httpx.Request], httpx.Response]


def job_json(status: str, **more: object) -> dict[str, object]:
    return JOB | {"status": status} | more


def client_of(handler: Handler, api_key: str | None = None) -> Client:
    transport = httpx.MockTransport(handler)
    return Client("http://graftwerk.test", api_key, transport=transport, pause=lambda _: None)


def frame(name: str, data: object, event_id: str) -> bytes:
    return f"id: {event_id}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()


class BrokenStream(httpx.SyncByteStream):
    """Yields its frames and then breaks, like a connection whose server was killed."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = frames

    def __iter__(self) -> Iterator[bytes]:
        yield from self.frames
        raise httpx.ReadError("connection reset")


def stream(content: bytes | httpx.SyncByteStream) -> httpx.Response:
    headers = {"Content-Type": "text/event-stream"}
    if isinstance(content, bytes):
        return httpx.Response(200, headers=headers, content=content)
    return httpx.Response(200, headers=headers, stream=content)


def test_a_job_is_submitted_as_json_with_an_idempotency_key_and_the_bearer_key() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(202, json=job_json("queued", links={"self": "/api/jobs/j1"}))

    job = client_of(handler, api_key="secret").submit({"kind": "merge"}).job
    assert (seen[0].method, seen[0].url.path, json.loads(seen[0].content)) == (
        "POST",
        "/api/jobs",
        {"kind": "merge"},
    )
    assert seen[0].headers["Authorization"] == "Bearer secret"
    assert len(seen[0].headers["Idempotency-Key"]) == 36
    assert (job.id, job.title, job.ended) == ("j1", "merge → ab", False)
    assert job.model_dump()["links"] == {"self": "/api/jobs/j1"}


def test_a_plan_is_requested_with_dry_run() -> None:
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
        client_of(handler).job("j1").refresh()
    assert caught.value.detail == "No Graftwerk service responds at http://graftwerk.test (refused)."
    assert "graftwerk serve" in caught.value.hint


@pytest.mark.parametrize("body", ["<html>", "[]", '{"id": "j1"}'])
def test_a_response_of_another_service_is_reported(body: str) -> None:
    with pytest.raises(UnreachableError, match="not as Graftwerk does"):
        client_of(lambda _: httpx.Response(200, text=body)).job("j1").refresh()


def test_half_a_character_in_a_request_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ApiError, match="half a character"):
        client_of(lambda _: httpx.Response(200)).submit({"prompt": "\udce4"})


def test_names_cannot_escape_their_segment_of_the_path() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path.decode())
        return httpx.Response(204)

    client_of(handler).delete_model("../jobs")
    assert seen == ["/api/models/..%2Fjobs"]


def test_dependents_and_the_hub_are_typed() -> None:
    answers = {
        "/api/models/zh/dependents": {
            "name": "zh", "adapters": ["zh-more"], "jobs": [],
            "models": [{"name": "ab", "kind": "huggingface", "operation": "merge", "roles": ["adapter"]}],
        },
        "/api/hub/models": {"models": []},
        "/api/hub/models/org/name": {
            "id": "org/name", "revision": "v1", "commit": "c" * 40, "gated": False, "private": False,
            "files": [{"path": "model.safetensors", "size_bytes": 7, "selected": True}], "size_bytes": 7,
            "selected_bytes": 7, "problem": {"code": "unsupported_model", "detail": "It is a diffusion model."},
        },
    }  # fmt: skip
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path.decode())
        return httpx.Response(200, json=answers[request.url.path])

    client = client_of(handler)
    found = client.dependents("zh")
    assert (found.models[0].roles, found.adapters) == (["adapter"], ["zh-more"])
    assert client.hub_search("qwen 3", limit=5) == []
    repository = client.hub_model("org/name", revision="v1")
    assert repository.files[0].selected
    assert repository.problem is not None and repository.problem.hint == ""
    assert seen == [
        "/api/models/zh/dependents", "/api/hub/models?search=qwen+3&limit=5", "/api/hub/models/org/name?revision=v1",
    ]  # fmt: skip


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
    jobs = [
        event
        for event in client_of(lambda _: stream(b"".join(frames))).job("j1").events()
        if isinstance(event, Job)
    ]
    assert [job.status for job in jobs] == ["running", "running", "succeeded"]
    assert jobs[1].progress is not None
    assert (jobs[1].progress.stage, jobs[1].progress.fraction) == ("writing", 0.25)
    assert jobs[2].model_dump()["result"] == {"ok": True}


def test_a_broken_stream_is_resumed_after_the_last_event() -> None:
    last_ids: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=job_json("running"))
        last_ids.append(request.headers.get("Last-Event-ID"))
        if len(last_ids) == 1:
            return stream(BrokenStream(frame("status", job_json("running"), "7-1")))
        return stream(frame("status", job_json("succeeded"), "8-0"))

    *_, last = client_of(handler).job("j1").events()
    assert isinstance(last, Job) and last.status == "succeeded"
    assert last_ids == [None, "7-1"]


def test_without_any_stream_a_job_is_polled_to_its_end() -> None:
    answers = iter(["queued", "running", "failed"])

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return httpx.Response(502)
        return httpx.Response(200, json=job_json(next(answers)))

    assert [job.status for job in client_of(handler).job("j1").events() if isinstance(job, Job)] == [
        "queued",
        "running",
        "failed",
    ]


def test_a_service_that_restarts_does_not_end_the_wait() -> None:
    asked = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal asked
        if request.url.path.endswith("/events"):
            raise httpx.ConnectError("refused")
        asked += 1
        if asked < MAX_FAILURES:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=job_json("succeeded"))

    assert client_of(handler).job("j1").wait().status == "succeeded"


def test_a_service_that_does_not_return_ends_the_wait() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(UnreachableError):
        client_of(handler).job("j1").wait()


def test_an_unknown_job_ends_the_wait_at_once() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(404, json={"code": "job_not_found", "detail": "no job j1", "hint": ""})

    with pytest.raises(ApiError, match="no job j1"):
        client_of(handler).job("j1").wait()
    assert asked == ["/api/jobs/j1"]
    with pytest.raises(ApiError, match="no job j1"):
        list(client_of(handler).job("j1").events())
    assert asked[1:] == ["/api/jobs/j1/events", "/api/jobs/j1"]


def test_a_wait_is_one_request_that_the_service_answers_at_the_end() -> None:
    asked: list[tuple[str, str]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.headers["Prefer"]))
        applied = {"Preference-Applied": request.headers["Prefer"]}
        status = "running" if len(asked) < 3 else "succeeded"
        return httpx.Response(200, json=job_json(status), headers=applied)

    pauses: list[float] = []
    client = Client("http://graftwerk.test", transport=httpx.MockTransport(handler), pause=pauses.append)
    assert client.job("j1").wait().status == "succeeded"
    assert asked == [("/api/jobs/j1", "wait=30")] * 3
    assert pauses == []


def test_a_wait_pauses_where_the_service_answers_at_once() -> None:
    answers = iter(["queued", "running", "failed"])
    pauses: list[float] = []
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json=job_json(next(answers))))
    client = Client("http://graftwerk.test", transport=transport, pause=pauses.append)
    assert client.job("j1").wait(timeout=3600).status == "failed"
    assert pauses == [2.0, 2.0]


def test_each_kind_has_a_method_that_returns_a_handle_with_a_typed_result() -> None:
    result = {
        "outputs": [{"prompt": "p", "text": "t"}],
        "seconds": 1.0,
        "tokens_per_second": 2.0,
        "device": "cpu",
        "dtype": "float32",
        "engine": "new",
    }
    ended = job_json("succeeded", kind="generate", result=result)
    piece = {"id": "j1", "index": 0, "offset": 0, "text": "t", "finish_reason": None}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return stream(frame("token", piece, "1-0") + frame("status", ended, "2-0"))
        assert json.loads(request.content) == {"kind": "generate", "model": "m", "prompt": "p"}
        return httpx.Response(202, json=job_json("queued", kind="generate"))

    handle = client_of(handler).generate(model="m", prompt="p")
    assert (handle.id, handle.status) == ("j1", "queued")
    texts = [event.text for event in handle.events() if isinstance(event, TokenPiece)]
    assert texts == ["t"]
    job = handle.wait()
    assert isinstance(job.result, GenerateResult)
    assert (job.status, job.result.outputs[0].text, job.error) == ("succeeded", "t", None)
    assert job.model_dump()["result"] == result


def test_a_result_that_another_version_wrote_differently_keeps_its_fields() -> None:
    ended = job_json("succeeded", kind="merge", result={"renamed": 1})
    job = client_of(lambda _: httpx.Response(200, json=ended)).job("j1").refresh()
    assert job.model_dump()["result"] == {"renamed": 1}


def test_a_wait_with_a_timeout_ends_while_the_job_keeps_running() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return stream(frame("status", job_json("running"), "1-0"))
        return httpx.Response(200, json=job_json("running"))

    handle = client_of(handler).job("j1")
    with pytest.raises(WaitTimeoutError, match="not ended"):
        handle.wait(timeout=0)
    assert handle.status == "running"


def test_url_and_key_default_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWERK_URL", "http://elsewhere.test:1/")
    with Client() as client:
        assert client.url == "http://elsewhere.test:1"
