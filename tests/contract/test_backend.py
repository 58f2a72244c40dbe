"""Another server that generates, played by a small one: its refusals, its faults, and the API and worker before it."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer

from services.backend import SERVICE_HEADER, Backend, Chunk
from services.errors import (
    GraftwerkError,
    InvalidRequest,
    InvalidSettings,
    ModelNotFound,
    NotReady,
    PromptTooLong,
)
from services.jobs.events import follow
from services.jobs.queue import JobQueue, connect
from services.kinds.generate import GenerateRequest
from services.kinds.shared import Usage
from tests.api_client import client_of, problem
from tests.contract.openai_server import FOREVER, HOLD, Scripted, answer, event, openai_server
from tests.contract.test_worker_generate import StartWorker, ended, settings_of, start_worker, volume
from tests.redis_server import Server, until
from tests.results import result_json

__all__ = ["start_worker", "volume"]  # fixtures

PLAIN = {"top_k": 0, "repetition_penalty": 1, "max_new_tokens": 9, "seed": 3}
CALL: dict[str, Any] = {"model": "org/m:8b", "prompt": "Hello"}


@pytest.fixture
def there() -> Iterator[Scripted]:
    with openai_server() as script:
        yield script


def backend_of(url: str, key: str | None = None) -> Backend:
    return Backend(url, key, identity=lambda: "me")


def chunks(backend: Backend) -> list[Chunk]:
    async def ask() -> list[Chunk]:
        async with (
            backend.client() as client,
            aclosing(backend.stream(client, "/v1/completions", CALL)) as found,
        ):
            return [chunk async for chunk in found]

    return asyncio.run(ask())


# ---- the server ---------------------------------------------------------------------------------------


def test_models_are_listed_with_the_key_and_as_forwarded(there: Scripted) -> None:
    there.models["data"] = [*there.models["data"], {"id": "/a path.gguf"}, {"id": "bare"}]
    models = backend_of(there.url, "secret").models()
    assert [(m.id, m.dialect, m.created, m.server) for m in models.values()] == [
        ("org/m:8b", "vllm", 5, there.url), ("bare", "None", 0, there.url),
    ]  # fmt: skip
    path, headers, _ = there.heard[0]
    assert path == "/v1/models"
    assert headers["Authorization"] == "Bearer secret"
    assert headers["X-Graftwerk-Forwarded"] == "1"


def test_the_address_is_shown_without_its_secrets() -> None:
    assert backend_of("http://user:word@there:1").server == "http://there:1"


def test_another_graftwerk_is_known_and_this_one_is_refused(there: Scripted) -> None:
    there.headers[SERVICE_HEADER] = "another"
    assert backend_of(there.url).models()["org/m:8b"].dialect == "graftwerk"
    there.headers[SERVICE_HEADER] = "me"
    with pytest.raises(InvalidSettings, match="this service itself"):
        backend_of(there.url).models()


@pytest.mark.parametrize("listing", ["<html>", [], {"data": [{}]}, {"data": None}])
def test_what_is_no_list_of_models_is_a_wrong_setting(there: Scripted, listing: Any) -> None:
    there.models = listing
    with pytest.raises(InvalidSettings, match="not a list of models"):
        backend_of(there.url).models()


def test_a_server_that_is_not_there_is_not_ready() -> None:
    with openai_server() as script:
        url = script.url
    with pytest.raises(NotReady, match="does not answer"):
        backend_of(url).models()
    with pytest.raises(NotReady, match="does not answer"):
        chunks(backend_of(url))


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"error": {"message": "bad thing", "type": "invalid_request_error"}}, InvalidRequest),
        (400, {"error": {"message": "bad thing", "code": "context_length_exceeded"}}, PromptTooLong),
        (422, {"detail": "bad thing"}, InvalidRequest),
        (401, {"error": "bad thing"}, InvalidSettings),
        (404, {"object": "error", "message": "bad thing", "code": 404}, ModelNotFound),
        (429, {"error": {"message": "bad thing"}}, NotReady),
        (500, "bad thing", NotReady),
        (503, {"error": {"message": "bad thing", "code": 503}}, NotReady),
    ],
)
def test_refusals_have_our_codes_and_their_words(
    there: Scripted, status: int, body: Any, error: type[GraftwerkError]
) -> None:
    there.status, there.body = status, body
    with pytest.raises(GraftwerkError, match="bad thing") as found:
        chunks(backend_of(there.url))
    assert type(found.value) is error


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"message": "bad thing", "type": "BadRequestError", "code": 400}, InvalidRequest),
        ({"message": "bad thing", "type": "InternalServerError", "code": 500}, NotReady),
        ({"message": "bad thing", "type": "server_error", "code": None}, NotReady),
        ({"message": "bad thing", "type": "invalid_request_error", "code": "context_length_exceeded"}, PromptTooLong),
    ],
)  # fmt: skip
def test_an_error_in_a_stream_has_our_code(there: Scripted, fields: Any, error: type[GraftwerkError]) -> None:
    there.events = [*answer("a")[:1], event(error=fields)]
    with pytest.raises(GraftwerkError, match="bad thing") as found:
        chunks(backend_of(there.url))
    assert type(found.value) is error


def test_a_stream_that_breaks_off_is_not_ready(there: Scripted) -> None:
    there.events = answer("a", "b")[:2]
    with pytest.raises(NotReady, match="ended early"):
        chunks(backend_of(there.url))


def test_a_stream_is_read_to_its_end(there: Scripted) -> None:
    there.events = answer("a", "b")
    found = chunks(backend_of(there.url))
    assert "".join(chunk.text for chunk in found) == "ab"
    assert found[-1].usage == Usage(prompt_tokens=4, completion_tokens=2, total_tokens=6)
    assert there.heard[0][2] == CALL


# ---- the API ------------------------------------------------------------------------------------------


def request_of(**fields: Any) -> dict[str, Any]:
    return {"kind": "generate", "model": "org/m:8b", "prompt": "Hello", "sampling": PLAIN, **fields}


def test_the_api_lists_its_own_models_and_then_the_others(volume: Path, there: Scripted) -> None:
    there.models["data"] = [*there.models["data"], {"id": "base", "owned_by": "x"}]
    api = client_of(volume, generate_backend_url=there.url)
    listed = api.get("/v1/models").get_json()["data"]
    assert [(model["id"], model["owned_by"]) for model in listed] == [("base", "local"), ("org/m:8b", "vllm")]
    assert api.get("/v1/models/org/m:8b").get_json() == {
        "id": "org/m:8b", "object": "model", "created": 5, "owned_by": "vllm",
    }  # fmt: skip


def test_another_graftwerk_gets_what_is_ours_alone(volume: Path, there: Scripted) -> None:
    redis = FakeRedis(server=FakeServer())
    api = client_of(volume, redis=redis, generate_backend_url=there.url)
    forwarded = {"X-Graftwerk-Forwarded": "1"}
    found = api.get("/v1/models", headers=forwarded)
    assert [model["id"] for model in found.get_json()["data"]] == ["base"]
    assert found.headers[SERVICE_HEADER] == api.get("/v1/models", headers=forwarded).headers[SERVICE_HEADER]
    refused = api.post("/v1/completions", json={"model": "org/m:8b", "prompt": "x"}, headers=forwarded)
    assert refused.status_code == 404
    assert there.heard == []


def test_a_job_for_the_other_server_is_taken_with_nothing_on_the_shelf(
    tmp_path: Path, there: Scripted
) -> None:
    api = client_of(tmp_path, generate_backend_url=there.url)
    plan = api.post("/api/jobs", json=request_of(), query_string={"dry_run": "true"}).get_json()
    assert plan["reads"] == [{"name": "org/m:8b", "role": "model", "backend": there.url}]
    assert plan["engine"] == "remote"
    assert api.post("/api/jobs", json=request_of()).status_code == 202
    for fields in ({"forward": False}, {"adapters": ["a"]}, {"rope_alpha": 2}):
        problem(api.post("/api/jobs", json=request_of(**fields)), 404, "model_not_found")
    beams = request_of(sampling=PLAIN | {"num_beams": 2})
    problem(api.post("/api/jobs", json=beams), 422, "unsupported_option")
    embed = {"kind": "embed", "model": "org/m:8b", "inputs": ["x"]}
    problem(api.post("/api/jobs", json=embed), 422, "invalid_request")


def test_while_the_other_server_is_away_nobody_guesses_who_answers(volume: Path) -> None:
    with openai_server() as script:
        url = script.url
    api = client_of(volume, generate_backend_url=url)
    problem(api.post("/api/jobs", json=request_of(model="base")), 503, "not_ready")
    assert api.get("/v1/models").status_code == 503
    assert api.post("/api/jobs", json=request_of(model="base", forward=False)).status_code == 202


# ---- the worker ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_there() -> Iterator[Scripted]:
    with openai_server() as script:
        yield script


@pytest.fixture(scope="module")
def queue(redis_server: Server, volume: Path, start_worker: StartWorker, server_there: Scripted) -> JobQueue:
    """A queue whose worker forwards to the small server."""
    settings = settings_of(redis_server.port, volume, 3).model_copy(
        update={"generate_backend_url": server_there.url}
    )
    queue = JobQueue(connect(settings), settings)
    queue.redis.flushdb()
    start_worker(queue)
    return queue


@pytest.fixture
def script(server_there: Scripted) -> Scripted:
    """The server of the worker as it was at the beginning."""
    fresh = Scripted()
    for name, value in vars(fresh).items():
        if name != "url":
            setattr(server_there, name, value)
    return server_there


def submit(queue: JobQueue, **fields: Any) -> str:
    return queue.submit(GenerateRequest.model_validate(request_of(**fields)))[0].id


def test_prompts_are_asked_one_by_one_and_put_together(queue: JobQueue, script: Scripted) -> None:
    script.events = answer("He", "llo")
    job = ended(queue, submit(queue, prompt=None, prompts=["a", "b"], sampling=PLAIN | {"n": 2}))
    assert [(one["prompt"], one["index"], one["text"], one["seed"]) for one in result_json(job)["outputs"]] == [
        ("a", 0, "Hello", 3), ("a", 1, "Hello", 4), ("b", 0, "Hello", 3), ("b", 1, "Hello", 4),
    ]  # fmt: skip
    asked = sorted(
        (body["prompt"], body["seed"]) for path, _, body in script.heard if path.startswith("/v1/c")
    )
    assert asked == [("a", 3), ("a", 4), ("b", 3), ("b", 4)]
    assert (result_json(job)["backend"], result_json(job)["device"]) == (script.url, None)
    assert result_json(job)["engine"] == "remote"


def test_thinking_and_calls_of_the_other_server_are_parts_of_the_output(
    queue: JobQueue, script: Scripted
) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    deltas = [{"reasoning_content": "Hm."}, {"content": "So"}, {"tool_calls": [call]}, {"tool_calls": [rest]}]
    pieces = [event(choices=[{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    usage = {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    end = event(choices=[{"index": 0, "delta": {}, "finish_reason": "tool_calls"}])
    script.events = [*pieces, end, event(choices=[], usage=usage), "[DONE]"]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    messages = [{"role": "user", "content": "Rain?"}]
    job = ended(queue, submit(queue, prompt=None, messages=messages, tools=tools, sampling=PLAIN))
    (output,) = result_json(job)["outputs"]
    assert (output["reasoning"], output["text"], output["finish_reason"]) == ("Hm.", "So", "tool_calls")
    assert output["tool_calls"] == [{"id": "c1", "name": "weather", "arguments": '{"a": 1}'}]
    job = ended(queue, submit(queue, tools=tools, sampling=PLAIN))
    assert result_json(job)["ignored"] == ["tools"]


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("texts", "has_form"),
    [(('{"a":', "\n\n  1 }"), True), (('{"a": "1"}',), False), (("Sure: ", '{"a": 1}'), False)],
)
def test_an_output_without_its_form_is_an_error(
    queue: JobQueue, script: Scripted, texts: tuple[str, ...], has_form: bool
) -> None:
    script.events = answer(*texts)
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    job = ended(queue, submit(queue, response_format=form))
    (body,) = [body for path, _, body in script.heard if path == "/v1/completions"]
    assert body["structured_outputs"] == {"json": SCHEMA}
    if has_form:
        assert result_json(job)["outputs"][0]["text"] == "".join(texts)
    else:
        assert job.error is not None
        assert job.error.code == "unsupported_option"
        assert "has not held the output to its form" in job.error.message


def test_text_is_told_before_the_answer_ends(queue: JobQueue, script: Scripted) -> None:
    first, *rest = answer("Hi", " there")
    script.events = [first, HOLD, *rest]
    job_id = submit(queue)
    told = []
    for found in follow(queue.redis, job_id, last_id=None, keepalive_seconds=1):
        if found is not None and found.name == "token":
            told.append(found.data)
            script.going_on.set()
    assert '"text": "Hi"' in told[0].replace('":"', '": "')
    assert len(told) > 1
    assert queue.get(job_id).status == "succeeded"


def test_cancel_closes_the_connection_at_once(queue: JobQueue, script: Scripted) -> None:
    script.events = [FOREVER]
    job_id = submit(queue)
    until(lambda: (progress := queue.get(job_id).progress) is not None and progress.done > 0, 30)
    began = time.monotonic()
    queue.cancel(job_id)
    assert script.gone.wait(5)
    assert time.monotonic() - began < 1
    assert ended(queue, job_id, 5).status == "canceled"


def test_a_silent_server_is_given_up_as_fast(queue: JobQueue, script: Scripted) -> None:
    script.events = [HOLD, *answer("late")]
    job_id = submit(queue)
    until(lambda: any(path == "/v1/completions" for path, _, _ in script.heard), 30)
    queue.cancel(job_id)
    assert ended(queue, job_id, 5).status == "canceled"


def test_one_prompt_that_is_refused_does_not_touch_the_rest_and_all_fail_the_job(
    queue: JobQueue, script: Scripted
) -> None:
    script.status, script.body = 400, {"error": {"message": "too odd"}}
    job = ended(queue, submit(queue, prompt=None, prompts=["a", "b"]))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "invalid_request")
    assert "too odd" in job.error.message
    asked = [body["prompt"] for path, _, body in script.heard if path == "/v1/completions"]
    assert sorted(asked) == ["a", "b"]  # not tried again


def test_a_server_with_too_much_to_do_is_asked_again_and_then_the_job_fails(
    queue: JobQueue, script: Scripted
) -> None:
    script.status, script.body = 503, {"error": {"message": "busy"}}
    job = ended(queue, submit(queue))
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "not_ready")
    assert sum(path == "/v1/completions" for path, _, _ in script.heard) == 3


def test_an_answer_that_lacks_what_was_asked_for_is_an_error(queue: JobQueue, script: Scripted) -> None:
    job = ended(queue, submit(queue, sampling=PLAIN | {"logprobs": 1}))
    assert job.error is not None
    assert job.error.code == "unsupported_option"
    script.events = [*answer("a")[:2], "[DONE]"]
    job = ended(queue, submit(queue))
    assert job.error is not None
    assert job.error.code == "invalid_settings"


def test_own_models_answer_while_the_other_server_is_slow_to_list_its(
    queue: JobQueue, script: Scripted
) -> None:
    own = request_of(
        model="base", forward=False, sampling=PLAIN | {"max_new_tokens": 400, "logit_bias": {"2": -100}}
    )
    first = queue.submit(GenerateRequest.model_validate(own))[0].id
    until(lambda: (progress := queue.get(first).progress) is not None and progress.done > 0, 60)
    script.listing.clear()
    waiting = submit(queue)
    assert ended(queue, first).status == "succeeded"
    assert queue.get(waiting).status == "running"
    script.listing.set()
    assert ended(queue, waiting).status == "succeeded"


def test_a_file_of_prompts_is_answered_into_a_file_and_goes_on_where_the_server_failed(
    queue: JobQueue, script: Scripted, volume: Path
) -> None:
    (volume / "incoming").mkdir(exist_ok=True)
    (volume / "incoming" / "asked.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    job = ended(queue, submit(queue, prompt=None, prompts_file="incoming/asked.txt"))
    lines = (volume / result_json(job)["results_file"]).read_text(encoding="utf-8").splitlines()[1:]
    written = {line["prompt"]: line["outputs"][0]["text"] for line in map(json.loads, lines)}
    assert written == {"one": "Hi", "two": "Hi", "three": "Hi"}
    assert (result_json(job)["answered"], result_json(job)["resumed"], result_json(job)["template"]) == (
        3,
        0,
        "raw",
    )
    assert result_json(job)["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    while script.answered.acquire(blocking=False):
        pass
    script.failing = {"two"}
    again = ended(queue, submit(queue, prompt=None, prompts_file="incoming/asked.txt"))
    assert again.error is None, again.error
    assert (result_json(again)["answered"], result_json(again)["failed"]) == (3, 0)
    assert result_json(again)["resumed"] >= 1
    assert result_json(again)["backend"] == script.url


def test_the_time_limit_of_a_job_holds_elsewhere_too(queue: JobQueue, script: Scripted) -> None:
    script.events = [FOREVER]
    hasty = JobQueue(queue.redis, queue.settings.model_copy(update={"job_timeout_seconds": 1}))
    job = ended(queue, submit(hasty), 20)
    assert job.error is not None
    assert (job.status, job.error.code) == ("failed", "timeout")
    assert script.gone.wait(5)
