"""`graftwerk chat`: its requests, the streamed text, interruptions."""

import json
from typing import Any

import pytest
from graftwerk.inference_results import TokenPiece
from graftwerk.job_handle import JobHandle

from tests.client_service import ID, Run, Service, generated


def test_chat_sends_all_turns_and_clears_them_on_reset(service: Service, run: Run) -> None:
    service.result = generated({"text": "hello"})
    result = run("chat", "m", "--system", "be kind", "--temperature", "0", input="hi\nagain\n/reset\nnew\n")
    assert result.exit_code == 0
    assert result.stdout == "hello\nhello\nhello\n"
    asked = [json.loads(r.content) for r in service.seen if r.url.path == "/api/jobs" and not r.url.query]
    system = {"role": "system", "content": "be kind"}
    user = {"role": "user", "content": "hi"}
    assert asked[0] == {
        "kind": "generate",
        "model": "m",
        "sampling": {"temperature": 0.0},
        "messages": [system, user],
        "fit_context": True,
    }
    answer = {"role": "assistant", "content": "hello"}
    assert asked[1]["messages"] == [system, user, answer, {"role": "user", "content": "again"}]
    assert asked[2]["messages"] == [system, {"role": "user", "content": "new"}]


def piece(offset: int, text: str) -> dict[str, Any]:
    return {"id": ID, "index": 0, "offset": offset, "text": text, "finish_reason": None}


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([piece(0, "  he"), piece(4, "llo [red]")], "  hello [red]!\n"),
        ([], "  hello [red]!\n"),
        ([piece(0, "  he"), piece(0, "  hello"), piece(7, " [red]!")], "  he\n  hello [red]!\n"),
        ([piece(0, "other")], "other\n  hello [red]!\n"),
    ],
)
def test_chat_shows_the_text_as_it_is_streamed_and_completes_it(
    service: Service, run: Run, pieces: list[dict[str, Any]], shown: str
) -> None:
    service.pieces, service.result = pieces, generated({"text": "  hello [red]!"})
    assert run("chat", "m", input="hi\n").stdout == shown


def test_chat_reports_the_turns_that_no_longer_fit(service: Service, run: Run) -> None:
    service.result = generated({"text": "hello", "dropped_turns": 3})
    assert "oldest 3 turns" in run("chat", "m", input="hi\n").stderr


def test_chat_checks_the_request_before_anything_is_typed(service: Service, run: Run) -> None:
    assert run("chat", "org/m:8b", "-a", "x", input="").exit_code == 0
    (first,) = service.seen
    assert (first.url.path, first.url.params["dry_run"]) == ("/api/jobs", "true")
    sent = json.loads(first.content)
    assert (sent["kind"], sent["model"], sent["adapters"]) == ("generate", "org/m:8b", ["x"])


def test_ctrl_c_in_chat_cancels_the_job_and_keeps_the_text_so_far(
    monkeypatch: pytest.MonkeyPatch, service: Service, run: Run
) -> None:
    events, interrupts = JobHandle.events, iter([False, True])

    def second_interrupted(handle: JobHandle) -> Any:
        if not next(interrupts, False):
            yield from events(handle)
            return
        yield TokenPiece.model_validate(piece(0, "hel"))
        raise KeyboardInterrupt

    monkeypatch.setattr(JobHandle, "events", second_interrupted)
    service.result = generated({"text": "hello"})
    result = run("chat", "m", input="one\ntwo\nthree\n")
    assert result.exit_code == 0
    assert result.stdout == "hello\nhel\nhello\n"
    assert "stopped" in result.stderr
    paths = [request.url.path for request in service.seen]
    assert paths.count(f"/api/jobs/{ID}/cancel") == 1
    asked = [
        json.loads(request.content)
        for request in service.seen
        if request.url.path == "/api/jobs" and not request.url.query
    ]
    assert [turn["content"] for turn in asked[2]["messages"]] == ["one", "hello", "two", "hel", "three"]


def test_chat_continues_after_a_failed_job(service: Service, run: Run) -> None:
    service.status, service.error = "failed", {"code": "x", "message": "too long", "hint": "shorten it"}
    result = run("chat", "m", input="hi\n/quit\nnot read\n")
    assert result.exit_code == 0
    assert "error: too long" in result.stderr
