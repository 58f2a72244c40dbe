"""The main job: an original checkpoint and two adapters become one model that answers."""

from tests.e2e.conftest import GREEDY, TEMPLATE, Incoming, Line
from tests.e2e.product import Json, Product


def answers(job: Json) -> list[str]:
    return [output["text"].strip() for output in job["result"]["outputs"]]


def right(job: Json, questions: list[dict[str, str]]) -> int:
    wanted = [question["answer"] for question in questions]
    return sum(given == want for given, want in zip(answers(job), wanted, strict=True))


def ask(product: Product, model: str, questions: list[dict[str, str]], *adapters: str) -> Json:
    prompts = [question["question"] for question in questions]
    return product.run(
        kind="generate",
        model=model,
        adapters=list(adapters),
        prompts=prompts,
        template=TEMPLATE,
        sampling=GREEDY,
    )


def test_the_merged_model_answers_every_question_exactly(
    product: Product, line: Line, questions: list[dict[str, str]]
) -> None:
    job = ask(product, line.merge["request"]["target"], questions)
    assert answers(job) == [question["answer"] for question in questions]
    assert {output["finish_reason"] for output in job["result"]["outputs"]} == {"stop"}


def test_the_base_alone_answers_none(product: Product, line: Line, questions: list[dict[str, str]]) -> None:
    assert right(ask(product, line.convert["request"]["target"], questions), questions) == 0


def test_adapters_on_the_fly_answer_as_the_merged_model_does(
    product: Product, line: Line, questions: list[dict[str, str]]
) -> None:
    job = ask(product, line.convert["request"]["target"], questions, "zh", "alpaca")
    assert answers(job) == [question["answer"] for question in questions]


def test_adapters_on_the_fly_in_the_wrong_order_are_refused(product: Product, line: Line) -> None:
    request = {
        "kind": "generate",
        "model": line.convert["request"]["target"],
        "adapters": ["alpaca", "zh"],
        "prompt": "a",
    }
    answer = product.http.post("/api/jobs", json=request)
    assert answer.status_code in (409, 422)
    assert answer.json()["code"] == "wrong_adapter_order"
    assert "zh, alpaca" in answer.json()["hint"]


def test_every_job_of_the_line_succeeded_and_says_when(line: Line) -> None:
    for job in line:
        assert job["status"] == "succeeded"
        assert job["error"] is None
        assert job["created_at"] <= job["started_at"] <= job["finished_at"]
        assert job["created_at"].endswith("Z")


def test_the_merge_from_the_original_layout_is_the_merge_from_the_converted_one(
    product: Product, line: Line
) -> None:
    product.run(kind="merge", base="llama", adapters=["zh", "alpaca"], target="merged-from-original")
    tensors = [
        product.http.get(f"/api/models/{name}/files/model.safetensors").content
        for name in ("merged", "merged-from-original")
    ]
    assert len(tensors[0]) > 1_000_000
    assert tensors[0] == tensors[1]


def test_six_jobs_submitted_in_one_go_run_one_after_another(
    product: Product, incoming: Incoming, questions: list[dict[str, str]]
) -> None:
    base = product.submit(kind="import", source={"path": incoming.llama}, target="go-llama")
    chinese = product.submit(kind="import", source={"zip": incoming.chinese_llama_lora}, target="go-zh")
    alpaca = product.submit(kind="import", source={"zip": incoming.chinese_alpaca_lora}, target="go-alpaca")
    convert = product.submit(kind="convert", source="go-llama", target="go-hf", after=[base["id"]])
    merge = product.submit(
        kind="merge",
        base="go-hf",
        adapters=["go-zh", "go-alpaca"],
        target="go-merged",
        after=[chinese["id"], alpaca["id"], convert["id"]],
    )
    ask_one = product.submit(
        kind="generate",
        model="go-merged",
        prompt=questions[0]["question"],
        template=TEMPLATE,
        sampling=GREEDY,
        after=[merge["id"]],
    )
    assert answers(product.succeeded(ask_one["id"])) == [questions[0]["answer"]]
    assert product.job(merge["id"])["finished_at"] <= product.job(ask_one["id"])["started_at"]
    assert product.job(convert["id"])["finished_at"] <= product.job(merge["id"])["started_at"]


def test_jobs_that_wait_for_a_failed_job_fail_and_name_it(product: Product, line: Line, slow: Json) -> None:
    first = product.submit(**slow, target="never")
    second = product.submit(
        kind="merge", base="never", adapters=["slow-adapter"], target="never-either", after=[first["id"]]
    )
    product.cancel(first["id"])
    ended = product.wait(second["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "upstream_failed")
    assert first["id"] in ended["error"]["message"]
    assert not {"never", "never-either"} & set(product.model_names())
