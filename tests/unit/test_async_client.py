"""`AsyncClient`: the same methods as `Client`, and what differs in their sending."""

import inspect
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import httpx
import pytest
from graftwerk import (
    ApiError,
    AsyncClient,
    Client,
    Job,
    TokenPiece,
    UnreachableError,
    UsageError,
    WaitTimeoutError,
)
from graftwerk.async_job_group import AsyncJobGroup
from graftwerk.async_job_handle import AsyncJobHandle
from graftwerk.inference_results import GenerateResult
from graftwerk.job_group import JobGroup
from graftwerk.job_handle import JobHandle

from tests.unit.test_client_http import JOB, Handler, frame, job_json

Work = Callable[[AsyncClient], Coroutine[Any, Any, None]]


def public(owner: type) -> dict[str, Any]:
    """Public methods and properties of a class and its parents."""
    return {name: value for name, value in inspect.getmembers(owner) if not name.startswith("_")}


def shape(member: Any) -> tuple[object, ...]:
    """Parameters, awaited result and documentation of a method, without the difference of the two clients."""
    if isinstance(member, property):
        return (shape(member.fget)[1],)
    signature = inspect.signature(member)
    parameters = [(one.name, one.kind, one.default, one.annotation) for one in signature.parameters.values()]
    returned = str(signature.return_annotation).replace("Async", "").replace("async_", "")
    return parameters, returned, inspect.getdoc(member)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(AsyncClient, Client), (AsyncJobHandle, JobHandle), (AsyncJobGroup, JobGroup)]
)
def test_both_clients_have_the_same_methods_parameters_results_and_documentation(
    ours: type, theirs: type
) -> None:
    assert public(ours).keys() == public(theirs).keys()
    for name, member in public(theirs).items():
        found, wanted = shape(public(ours)[name]), shape(member)
        if name == "wait":  # one sentence more, about cancelled tasks
            found, wanted = found[:2], wanted[:2]
        assert found == wanted, name


def test_every_method_that_sends_is_a_coroutine() -> None:
    plain = {name for name, member in public(AsyncClient).items() if not inspect.iscoroutinefunction(member)}
    assert plain == {"url", "job", "group"}
    plain = {
        name for name, member in public(AsyncJobHandle).items() if not inspect.iscoroutinefunction(member)
    }
    assert plain == {"job", "status", "events"}


def run(handler: Handler, work: Work) -> list[float]:
    """Runs a coroutine with a client of a fake service and returns the pauses between its attempts."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    async def main() -> None:
        transport = httpx.MockTransport(handler)
        async with AsyncClient("http://graftwerk.test", "secret", transport=transport, pause=pause) as client:
            await work(client)

    anyio.run(main)
    return pauses


class BrokenStream(httpx.AsyncByteStream):
    """Yields its frames and then breaks, like a connection whose server was killed."""

    def __init__(self, *frames: bytes) -> None:
        self.frames = frames

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for one in self.frames:
            yield one
        raise httpx.ReadError("connection reset")


def stream(*frames: bytes) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, stream=BrokenStream(*frames))


def test_a_kind_is_submitted_and_followed_to_its_typed_result() -> None:
    result = {"outputs": [{"prompt": "p", "text": "t"}], "seconds": 1.0, "tokens_per_second": 2.0}
    ended = job_json("succeeded", kind="generate", result=result | {"device": "cpu", "dtype": "float32"})
    piece = {"id": "j1", "index": 0, "offset": 0, "text": "t", "finish_reason": None}

    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return stream(frame("token", piece, "1-0"), frame("status", ended, "2-0"))
        assert json.loads(request.content) == {"kind": "generate", "model": "m", "prompt": "p"}
        assert request.headers["Authorization"] == "Bearer secret"
        assert len(request.headers["Idempotency-Key"]) == 36
        return httpx.Response(202, json=job_json("queued", kind="generate"))

    async def work(client: AsyncClient) -> None:
        handle = await client.generate(model="m", prompt="p")
        assert (handle.id, handle.status) == ("j1", "queued")
        texts = [event.text async for event in handle.events() if isinstance(event, TokenPiece)]
        assert texts == ["t"]
        job = await handle.wait()
        assert isinstance(job.result, GenerateResult)
        assert job.result.outputs[0].text == "t"

    run(handler, work)


def test_a_broken_stream_is_resumed_after_the_last_event() -> None:
    last_ids: list[str | None] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json=job_json("running"))
        last_ids.append(request.headers.get("Last-Event-ID"))
        status = "running" if len(last_ids) == 1 else "failed"
        return stream(frame("status", job_json(status), f"7-{len(last_ids)}"))

    async def work(client: AsyncClient) -> None:
        states = [event.status async for event in client.job("j1").events() if isinstance(event, Job)]
        assert states == ["running", "running", "failed"]

    assert run(handler, work) == [2.0]
    assert last_ids == [None, "7-1"]


def test_a_wait_shows_its_progress_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return stream(
                frame("status", job_json("running"), "1-0"), frame("status", job_json("succeeded"), "2-0")
            )
        return httpx.Response(200, json=job_json("queued"))

    async def work(client: AsyncClient) -> None:
        assert (await client.job("j1").wait(progress=True)).status == "succeeded"

    run(handler, work)
    assert capsys.readouterr().err.splitlines() == [
        "merge → ab  queued", "merge → ab  running", "merge → ab  succeeded",
    ]  # fmt: skip


def test_a_wait_survives_a_restart_and_ends_in_time() -> None:
    answers = iter([503, 200])

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(next(answers, 200), json=job_json("running"))

    async def work(client: AsyncClient) -> None:
        with pytest.raises(WaitTimeoutError, match="not ended"):
            await client.job("j1").wait(timeout=0)

    run(lambda _: httpx.Response(200, json=job_json("running")), work)

    def then_ended(request: httpx.Request) -> httpx.Response:
        return httpx.Response(next(answers), json=job_json("succeeded"))

    async def patient(client: AsyncClient) -> None:
        assert (await client.job("j1").wait()).status == "succeeded"

    assert run(then_ended, patient) == [2.0]


def test_refusals_and_strangers_are_the_same_errors() -> None:
    problem = {
        "code": "wrong_adapter_order",
        "detail": "a comes first",
        "hint": "swap them",
        "order": ["a", "b"],
    }

    async def refused(client: AsyncClient) -> None:
        with pytest.raises(ApiError, match="a comes first") as caught:
            await client.merge(base="x", adapters=["b", "a"], target="y")
        assert (caught.value.code, caught.value.status) == ("wrong_adapter_order", 422)
        assert caught.value.order == ["a", "b"]

    async def stranger(client: AsyncClient) -> None:
        with pytest.raises(UnreachableError, match="not as Graftwerk does"):
            await client.models()

    run(lambda _: httpx.Response(422, json=problem), refused)
    run(lambda _: httpx.Response(200, text="<html>"), stranger)


def test_the_state_of_a_job_by_its_id_is_not_known_before_it_is_requested() -> None:
    async def work(client: AsyncClient) -> None:
        handle = client.job("j1")
        with pytest.raises(UsageError, match="not requested"):
            _ = handle.status
        assert (await handle.refresh()).status == "queued"
        assert handle.job.title == "merge → ab"

    run(lambda _: httpx.Response(200, json=JOB), work)


def test_lists_and_lookups_are_typed() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        one = {"name": "ab", "kind": "huggingface", "size_bytes": 5, "new_field": 1}
        return httpx.Response(200, json={"models": [one]} if request.url.path == "/api/models" else one)

    async def work(client: AsyncClient) -> None:
        (first,) = await client.models()
        assert (first.name, first.kind, first.size_bytes) == ("ab", "huggingface", 5)
        assert (await client.model("ab")).model_dump()["new_field"] == 1

    run(handler, work)


def test_several_jobs_are_followed_by_one_stream() -> None:
    asked: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path == "/api/events":
            return stream(
                frame("status", job_json("running"), "1-0"),
                frame("status", job_json("running", id="j3"), "2-0"),
                frame("status", job_json("succeeded"), "3-0"),
            )
        return httpx.Response(200, json=job_json("failed", id="j2"))

    async def work(client: AsyncClient) -> None:
        jobs = [Job.model_validate(job_json("queued", id=job_id)) for job_id in ("j1", "j2")]
        seen = [(job.id, job.status) async for job in client.group(jobs).changes()]
        assert seen == [
            ("j1", "queued"), ("j2", "queued"), ("j1", "running"), ("j1", "succeeded"), ("j2", "failed"),
        ]  # fmt: skip

    assert run(handler, work) == []
    assert asked == ["/api/events", "/api/jobs/j2"]


def test_a_request_can_have_an_id_of_the_caller() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("PUT", "/api/jobs/j1")
        return httpx.Response(202, json=job_json("queued"))

    async def work(client: AsyncClient) -> None:
        assert (await client.put("j1", {"kind": "merge"})).status == "queued"

    run(handler, work)
