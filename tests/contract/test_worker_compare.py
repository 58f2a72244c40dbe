"""Compare jobs on the resident worker, against generate jobs that ask each variant alone."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.jobs.queue import JobQueue
from services.jobs.status import Job
from services.kinds.compare import CompareRequest
from services.kinds.generate import Output
from services.merge import merge
from tests.contract.test_worker_generate import (
    ADAPTERS,
    GREEDY,
    LONG,
    QUESTIONS,
    ask,
    ended,
    outputs,
    queue,
    start_worker,
    told,
    volume,
)
from tests.redis_server import until
from tests.results import result_json
from worker.inference.compare import ComparedOutput, first_difference

__all__ = ["queue", "start_worker", "volume"]  # fixtures

VARIANTS = [
    {"model": "base"},
    {"model": "base", "adapters": ADAPTERS, "label": "on the fly"},
    {"model": "merged"},
]
PROMPTS = [row["question"] for row in QUESTIONS[:4]]
DRAWN = {"temperature": 1.1, "max_new_tokens": 24, "n": 2, "seed": 7}


@pytest.fixture(scope="module", autouse=True)
def merged(volume: Path) -> None:
    """The adapters merged, as a merge job does it."""
    (volume / "merged").mkdir()
    merge(volume / "base", [(name, volume / name, 1.0) for name in ADAPTERS], volume / "merged")


def submit(queue: JobQueue, **request: Any) -> str:
    body = {"kind": "compare", "variants": VARIANTS, "template": "alpaca", "sampling": GREEDY, **request}
    return queue.submit(CompareRequest.model_validate(body))[0].id


def compare(queue: JobQueue, **request: Any) -> Job:
    return ended(queue, submit(queue, **request), 90)


def result(job: Job) -> dict[str, Any]:
    return result_json(job)


def test_each_variant_answers_as_in_a_job_of_its_own(queue: JobQueue) -> None:
    found = result(compare(queue, prompts=PROMPTS, sampling=DRAWN))
    assert [variant["label"] for variant in found["variants"]] == ["base", "on the fly", "merged"]
    for number, variant in enumerate(VARIANTS):
        names = {name: value for name, value in variant.items() if name != "label"}
        alone = ask(queue, prompts=PROMPTS, template="alpaca", sampling=DRAWN, return_token_ids=True, **names)
        assert [row["outputs"][number] for row in found["comparisons"]] == outputs(ended(queue, alone))
    assert [row["prompt"] for row in found["comparisons"]] == [prompt for prompt in PROMPTS for _ in "12"]


def test_adapters_on_the_fly_equal_the_merged_model_and_differ_from_the_base(queue: JobQueue) -> None:
    found = result(
        compare(queue, prompts=["The capital of France is", "The capital of Japan is"], template=None)
    )
    first, second = found["comparisons"]
    # "Par", "is" against "Par", "升"
    assert [output["text"] for output in first["outputs"]] == ["Paris.", "Par升.", "Par升."]
    assert first["differences"] == [
        {"variants": ["base", "on the fly"], "token": 2, "character": 3},
        {"variants": ["base", "merged"], "token": 2, "character": 3},
        {"variants": ["on the fly", "merged"], "token": None, "character": None},
    ]
    assert [output["token_ids"][:2] for output in first["outputs"]] == [
        first["outputs"][0]["token_ids"][:2]
    ] * 3
    assert [output["text"] for output in second["outputs"]] == ["Tokyo."] * 3
    assert [(one["token"], one["character"]) for one in second["differences"]] == [(None, None)] * 3
    assert found["pairs"] == [
        {"variants": ["base", "on the fly"], "equal": 1, "compared": 2},
        {"variants": ["base", "merged"], "equal": 1, "compared": 2},
        {"variants": ["on the fly", "merged"], "equal": 2, "compared": 2},
    ]
    assert {variant["template"] for variant in found["variants"]} == {"raw"}
    assert found["variants"][1]["adapters"] == [{"name": name, "scale": 1.0} for name in ADAPTERS]


def test_one_seed_is_drawn_for_all_and_gives_the_same_again(queue: JobQueue) -> None:
    sampling = {name: value for name, value in DRAWN.items() if name != "seed"}
    first = result(compare(queue, prompt="A", sampling=sampling))
    assert {row["outputs"][v]["seed"] for row in first["comparisons"][:1] for v in range(3)} == {
        first["seed"]
    }
    again = result(compare(queue, prompt="A", sampling=sampling | {"seed": first["seed"]}))
    assert again["comparisons"] == first["comparisons"]


def test_a_conversation_gets_the_template_that_each_variant_has_alone(queue: JobQueue) -> None:
    messages = [{"role": "user", "content": QUESTIONS[0]["question"]}]
    found = result(compare(queue, messages=messages, template=None))
    assert [variant["template"] for variant in found["variants"]][:2] == ["alpaca-chat", "alpaca"]


def test_the_text_is_told_under_its_place_among_all_outputs(queue: JobQueue) -> None:
    job_id = submit(queue, prompts=PROMPTS[:2])
    pieces = told(queue, job_id)
    found = result(queue.get(job_id))
    texts = [row["outputs"][variant]["text"] for variant in range(3) for row in found["comparisons"]]
    for index, text in enumerate(texts):
        assert "".join(piece["text"] for piece in pieces if piece["index"] == index) == text


def test_a_prompt_that_is_too_long_has_its_error_and_no_difference(queue: JobQueue) -> None:
    long = "The capital of France is " * 1000
    found = result(compare(queue, prompts=[long, PROMPTS[0]], sampling=GREEDY | {"n": 2}))
    assert [row["prompt"] for row in found["comparisons"]] == [long, long, PROMPTS[0], PROMPTS[0]]
    for row in found["comparisons"][:2]:
        assert {output["error"]["code"] for output in row["outputs"]} == {"prompt_too_long"}
        assert row["differences"] == []
    assert found["pairs"][2] == {"variants": ["on the fly", "merged"], "equal": 2, "compared": 2}
    job = compare(queue, prompt=long)
    assert job.error is not None
    assert job.error.code == "prompt_too_long"


def test_a_comparison_is_canceled_and_its_neighbour_goes_on(queue: JobQueue) -> None:
    job_id = submit(queue, prompt="A", sampling=LONG)
    neighbour = ask(queue, prompt="The capital of Japan is", sampling=LONG | {"max_new_tokens": 300})
    until(lambda: queue.get(job_id).progress is not None)
    queue.cancel(job_id)
    assert until(lambda: queue.get(job_id).status == "canceled") < 2.0
    assert ended(queue, neighbour).status == "succeeded"


def compared(text: str, pieces: list[str]) -> ComparedOutput:
    return ComparedOutput(Output(prompt="p", text=text), pieces)


@pytest.mark.parametrize(
    ("one", "other", "token", "character"),
    [
        ((["a", "b"], "ab"), (["a", "b"], "ab"), None, None),
        ((["a", "b", "c"], "abc"), (["a", "d"], "ad"), 1, 1),
        ((["a", "b"], "ab"), (["a", "b", "c"], "abc"), 2, 2),
        ((["ab"], "ab"), (["a", "b"], "ab"), 0, None),
        (([], ""), (["x"], "x"), 0, 0),
        ((["▁a", "</s>"], "a"), (["▁a"], "a"), 1, None),
    ],
)
def test_a_difference_is_the_first_token_and_the_first_character(
    one: tuple[list[str], str], other: tuple[list[str], str], token: int | None, character: int | None
) -> None:
    a, b = (compared(text, pieces) for pieces, text in (one, other))
    assert first_difference(a, b) == first_difference(b, a) == (token, character)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"variants": [{"model": "a"}]}, "at least 2"),
        ({"prompt": "x", "variants": [{"model": "a"}, {"model": "b", "label": "a"}]}, "have the name a"),
        ({"prompts": ["x"] * 257}, "at most 256 prompts"),
        ({"prompts": ["x"], "prompt": "y"}, "exactly one of prompt, prompts, messages"),
        ({"prompts_file": "incoming/x"}, "Extra inputs"),
    ],
)
def test_what_cannot_be_compared_is_refused(changed: dict[str, Any], said: str) -> None:
    request = {"kind": "compare", "variants": [{"model": "a"}, {"model": "b"}]} | changed
    with pytest.raises(ValidationError, match=said):
        CompareRequest.model_validate(request)
