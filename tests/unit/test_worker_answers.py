"""The file of answers: its lines, what an execution takes over from the one before, and who may write into it."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from services.errors import ExecutionSuperseded
from services.models.store import ModelStore
from tests.job_context import job_context
from worker.inference.result_sink import JsonlSink, MemorySink

pytestmark = pytest.mark.disable_socket

JOB = "11111111-2222-3333-4444-555555555555"
Open = Callable[..., JsonlSink]


class Line:
    """Who is the current execution of the job."""

    current = ""


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def begin(tmp_path: Path, line: Line) -> Iterator[Open]:
    """Begins an execution, which is the current one from then on."""
    with ExitStack() as opened:

        def open_answers(execution: str, digest: str = "d", prompts: int = 3) -> JsonlSink:
            line.current = execution

            def confirm() -> None:
                if line.current != execution:
                    raise ExecutionSuperseded("another one runs")

            context = job_context(tmp_path, job_id=JOB, run=execution, ensure_current=confirm)
            answers = JsonlSink(context, digest, prompts)
            opened.callback(answers.close)
            return answers

        yield open_answers


def output(prompt: str, text: str, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    return {"prompt": prompt, "index": 0, "text": text, "finish_reason": "stop", "usage": usage} | more


def lines(root: Path) -> list[dict[str, Any]]:
    text = (root / "results" / f"{JOB}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def put(answers: JsonlSink, number: int, text: str) -> None:
    answers.put(number, f"p{number}", [output(f"p{number}", text)])
    answers.save()


FAILED = {"code": "prompt_too_long", "message": "m", "hint": "h"}


def test_answers_are_lines_as_they_come_and_a_list_in_order_at_the_end(tmp_path: Path, begin: Open) -> None:
    answers = begin("e1")
    assert lines(tmp_path) == [{"job": JOB, "asked": "d", "prompts": 3}]
    put(answers, 2, "丙")
    assert lines(tmp_path)[1:] == [{"number": 2, "prompt": "p2", "outputs": [output("p2", "丙")]}]
    put(answers, 0, "甲")
    answers.put(1, "p1", [{"prompt": "p1", "error": FAILED}])
    result = answers.result()
    assert lines(tmp_path)[3] == {"number": 1, "prompt": "p1", "error": FAILED}
    predictions = tmp_path / "results" / f"{JOB}.predictions.json"
    assert json.loads(predictions.read_text(encoding="utf-8")) == [
        {"Input": "p0", "Output": "甲"},
        {"Input": "p1", "Output": None},
        {"Input": "p2", "Output": "丙"},
    ]
    assert result == {
        "outputs": [output("p0", "甲"), {"prompt": "p1", "error": FAILED}, output("p2", "丙")],
        "prompts": 3,
        "answered": 2,
        "failed": 1,
        "resumed": 0,
        "usage": {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10},
        "results_file": f"results/{JOB}.jsonl",
        "predictions_file": f"results/{JOB}.predictions.json",
    }
    for path in (tmp_path / "results").iterdir():
        assert path.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "results").stat().st_mode & 0o777 == 0o755
    assert not list((tmp_path / ".staging").iterdir())


def test_the_result_shows_the_outputs_of_the_first_ten_prompts(begin: Open) -> None:
    answers = begin("e1", prompts=12)
    for number in range(12):
        put(answers, number, str(number))
    assert [shown["text"] for shown in answers.result()["outputs"]] == [str(number) for number in range(10)]


def test_the_next_execution_takes_over_what_is_answered(tmp_path: Path, begin: Open) -> None:
    first = begin("e1")
    put(first, 1, "b")
    first.put(0, "p0", [{"prompt": "p0", "error": FAILED}])
    first.save()
    with (tmp_path / "results" / f"{JOB}.jsonl").open("ab") as file:
        file.write(b'{"number": 2, "prompt": "p2", "outp')
    second = begin("e2")
    assert second.known == {1}, "the one with an error and the torn one are asked again"
    put(second, 0, "a")
    put(second, 2, "c")
    result = second.result()
    assert [shown["text"] for shown in result["outputs"]] == ["a", "b", "c"]
    assert (result["answered"], result["failed"], result["resumed"]) == (3, 0, 1)
    assert [line["number"] for line in lines(tmp_path)[1:]] == [1, 0, 2]


def test_a_whole_line_without_its_newline_is_torn(tmp_path: Path, begin: Open) -> None:
    put(begin("e1"), 1, "b")
    path = tmp_path / "results" / f"{JOB}.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert begin("e2").known == set()


@pytest.mark.parametrize("changed", [{"digest": "other"}, {"prompts": 4}])
def test_what_was_asked_otherwise_begins_anew(tmp_path: Path, begin: Open, changed: dict[str, Any]) -> None:
    put(begin("e1"), 1, "b")
    assert begin("e2", **changed).known == set()
    assert len(lines(tmp_path)) == 1


def test_an_execution_that_lost_its_job_writes_into_no_file_of_its_successor(
    tmp_path: Path, begin: Open
) -> None:
    first = begin("e1")
    put(first, 0, "a")
    second = begin("e2")
    put(first, 1, "late")
    put(second, 1, "b")
    put(first, 2, "late too")
    put(second, 2, "c")
    with pytest.raises(ExecutionSuperseded):
        first.result()
    second.result()
    texts = {line["number"]: line["outputs"][0]["text"] for line in lines(tmp_path)[1:]}
    assert texts == {0: "a", 1: "b", 2: "c"}


def test_a_name_that_was_taken_in_the_last_moment_is_taken_back(
    tmp_path: Path, begin: Open, line: Line
) -> None:
    second = begin("e2")
    put(second, 0, "a")
    begin("e1")  # its last question was answered before the second began, its rename came after
    line.current = "e2"
    put(second, 1, "b")
    put(second, 2, "c")
    second.result()
    assert [line["number"] for line in lines(tmp_path)[1:]] == [0, 1, 2]


def test_an_execution_that_lost_its_job_does_not_begin(tmp_path: Path, begin: Open, line: Line) -> None:
    put(begin("e1"), 0, "a")
    before = lines(tmp_path)
    store = ModelStore(tmp_path)

    def lost() -> None:
        raise ExecutionSuperseded("another one runs")

    with (
        pytest.raises(ExecutionSuperseded),
        store.replacing_result(f"{JOB}.jsonl", execution="e0", confirm=lost),
    ):
        pass
    assert lines(tmp_path) == before
    assert not list((tmp_path / ".staging").iterdir())


def test_an_answer_that_was_cut_off_is_none(tmp_path: Path, begin: Open) -> None:
    answers = begin("e1")
    answers.put(0, "p0", [output("p0", "ha", finish_reason="canceled")])
    answers.save()
    assert len(lines(tmp_path)) == 1


def test_answers_without_a_file_are_kept_in_the_prompts_order() -> None:
    answers = MemorySink(2)
    answers.put(1, "p1", [output("p1", "b")])
    answers.put(0, "p0", [{"prompt": "p0", "error": FAILED}])
    assert answers.answered == 1
    assert answers.result() == {"outputs": [{"prompt": "p0", "error": FAILED}, output("p1", "b")]}
