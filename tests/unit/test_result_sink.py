"""The file of results: its lines, the lines that an execution copies from the previous one, and fencing."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from services.errors import ExecutionSuperseded
from services.kinds.generate import ComputedBy, GenerateResult, Output
from services.models.store import ModelStore
from tests.job_context import job_context
from worker.inference.result_sink import JsonlSink, MemorySink

pytestmark = pytest.mark.disable_socket

JOB = "11111111-2222-3333-4444-555555555555"
Open = Callable[..., JsonlSink]


class Fence:
    """Name of the current execution of the job."""

    current = ""


@pytest.fixture
def fence() -> Fence:
    return Fence()


@pytest.fixture
def begin(tmp_path: Path, fence: Fence) -> Iterator[Open]:
    """Starts an execution, which is the current one from then on."""
    with ExitStack() as opened:

        def open_sink(execution: str, digest: str = "d", prompts: int = 3) -> JsonlSink:
            fence.current = execution

            def confirm() -> None:
                if fence.current != execution:
                    raise ExecutionSuperseded("Another execution runs.")

            context = job_context(tmp_path, job_id=JOB, run=execution, ensure_current=confirm)
            sink = JsonlSink(context, digest, prompts)
            opened.callback(sink.close)
            return sink

        yield open_sink


COMPUTED = ComputedBy(
    template="raw", seconds=1, tokens_per_second=2, device="cpu", dtype="float32", backend=None
)


def result_of(sink: JsonlSink | MemorySink) -> dict[str, Any]:
    """The sink's own part of the result."""
    result: GenerateResult = sink.result(COMPUTED)
    return result.model_dump(exclude=set(ComputedBy.model_fields), exclude_unset=True)


def failed(prompt: str) -> Output:
    return Output.model_validate({"prompt": prompt, "error": FAILED})


def output(prompt: str, text: str, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    return {"prompt": prompt, "index": 0, "text": text, "finish_reason": "stop", "usage": usage} | more


def lines(root: Path) -> list[dict[str, Any]]:
    text = (root / "results" / f"{JOB}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def put(sink: JsonlSink, number: int, text: str) -> None:
    sink.add(number, f"p{number}", [Output.model_validate(output(f"p{number}", text))])
    sink.save()


FAILED = {"code": "prompt_too_long", "message": "m", "hint": "h"}


def test_outputs_are_lines_as_they_complete_and_a_list_in_order_at_the_end(
    tmp_path: Path, begin: Open
) -> None:
    sink = begin("e1")
    assert lines(tmp_path) == [{"job": JOB, "asked": "d", "prompts": 3}]
    put(sink, 2, "丙")
    assert lines(tmp_path)[1:] == [{"number": 2, "prompt": "p2", "outputs": [output("p2", "丙")]}]
    put(sink, 0, "甲")
    sink.add(1, "p1", [failed("p1")])
    result = result_of(sink)
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
    sink = begin("e1", prompts=12)
    for number in range(12):
        put(sink, number, str(number))
    assert [shown["text"] for shown in result_of(sink)["outputs"]] == [str(number) for number in range(10)]


def test_the_next_execution_copies_the_completed_lines(tmp_path: Path, begin: Open) -> None:
    first = begin("e1")
    put(first, 1, "b")
    first.add(0, "p0", [failed("p0")])
    first.save()
    with (tmp_path / "results" / f"{JOB}.jsonl").open("ab") as file:
        file.write(b'{"number": 2, "prompt": "p2", "outp')
    second = begin("e2")
    assert second.completed == {1}, "the failed and the torn line are generated again"
    put(second, 0, "a")
    put(second, 2, "c")
    result = result_of(second)
    assert [shown["text"] for shown in result["outputs"]] == ["a", "b", "c"]
    assert (result["answered"], result["failed"], result["resumed"]) == (3, 0, 1)
    assert [line["number"] for line in lines(tmp_path)[1:]] == [1, 0, 2]


def test_a_whole_line_without_its_newline_is_torn(tmp_path: Path, begin: Open) -> None:
    put(begin("e1"), 1, "b")
    path = tmp_path / "results" / f"{JOB}.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert begin("e2").completed == set()


@pytest.mark.parametrize("changed", [{"digest": "other"}, {"prompts": 4}])
def test_another_request_starts_an_empty_file(tmp_path: Path, begin: Open, changed: dict[str, Any]) -> None:
    put(begin("e1"), 1, "b")
    assert begin("e2", **changed).completed == set()
    assert len(lines(tmp_path)) == 1


def test_a_superseded_execution_does_not_write_into_the_file_of_its_successor(
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
        result_of(first)
    result_of(second)
    texts = {line["number"]: line["outputs"][0]["text"] for line in lines(tmp_path)[1:]}
    assert texts == {0: "a", 1: "b", 2: "c"}


def test_a_file_that_was_replaced_at_the_last_moment_is_restored(
    tmp_path: Path, begin: Open, fence: Fence
) -> None:
    second = begin("e2")
    put(second, 0, "a")
    begin("e1")  # it was current when it was checked, and renamed its file after the second had started
    fence.current = "e2"
    put(second, 1, "b")
    put(second, 2, "c")
    result_of(second)
    assert [line["number"] for line in lines(tmp_path)[1:]] == [0, 1, 2]


def test_a_superseded_execution_does_not_start(tmp_path: Path, begin: Open, fence: Fence) -> None:
    put(begin("e1"), 0, "a")
    before = lines(tmp_path)
    store = ModelStore(tmp_path)

    def lost() -> None:
        raise ExecutionSuperseded("Another execution runs.")

    with (
        pytest.raises(ExecutionSuperseded),
        store.replacing_result(f"{JOB}.jsonl", execution="e0", confirm=lost),
    ):
        pass
    assert lines(tmp_path) == before
    assert not list((tmp_path / ".staging").iterdir())


def test_a_canceled_output_is_not_written(tmp_path: Path, begin: Open) -> None:
    sink = begin("e1")
    canceled = output("p0", "ha", finish_reason="canceled")
    sink.add(0, "p0", [Output.model_validate(canceled)])
    sink.save()
    assert len(lines(tmp_path)) == 1


def test_outputs_in_memory_are_in_the_prompts_order() -> None:
    sink = MemorySink(2)
    sink.add(1, "p1", [Output.model_validate(output("p1", "b"))])
    sink.add(0, "p0", [failed("p0")])
    assert sink.answered == 1
    assert result_of(sink) == {"outputs": [{"prompt": "p0", "error": FAILED}, output("p1", "b")]}
