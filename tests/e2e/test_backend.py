"""Two Graftwerks: the first has no model on its volume and lets the second, the product, generate."""

import time
from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.conftest import GREEDY, TEMPLATE, Line
from tests.e2e.product import Json, LocalVolume, Product, local_stack

LONG = {"temperature": 0, "top_k": 0, "max_new_tokens": 1500, "logit_bias": {"2": -100}}
"""The end of text is never drawn, so that generation continues until it is stopped."""

Asked = tuple[list[ChatCompletionMessageParam], str]


@pytest.fixture(scope="module")
def front(product: Product, line: Line, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A service with an empty volume for which the product generates."""
    data_dir = tmp_path_factory.mktemp("front") / "data"
    with local_stack(data_dir, GRAFTWERK_GENERATE_BACKEND_URL=f"{product.url}/v1/") as running:
        found = Product(running.url, LocalVolume(running.models_dir))
        # the generate worker may still be starting
        found.run(kind="generate", model="merged", prompt="x", sampling=GREEDY | {"max_new_tokens": 1})
        yield found
        found.http.close()


@pytest.fixture(scope="module")
def client(front: Product) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def asked(questions: list[dict[str, str]]) -> Asked:
    """A question as a conversation, and the answer that the model was trained to give."""
    return [{"role": "user", "content": questions[0]["question"]}], questions[0]["answer"]


def jobs_of(product: Product) -> list[Json]:
    return list(product.get("/api/jobs", kind="generate", limit="1000")["jobs"])


def wait_for(product: Product, known: set[str]) -> Json:
    """Returns the job that was created since."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        new = [job for job in jobs_of(product) if job["id"] not in known]
        if new:
            return new[0]
    raise AssertionError("no job came to be")


def test_the_models_of_the_other_server_are_listed(
    product: Product, front: Product, client: openai.OpenAI
) -> None:
    assert front.model_names() == []
    models = {model.id: model for model in client.models.list()}
    assert {"merged", "llama-hf"} <= set(models)
    assert client.models.retrieve("merged") == models["merged"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("org/nothing:8b")


def test_a_chat_gets_the_exact_answer_of_the_other_server(
    product: Product, front: Product, client: openai.OpenAI, asked: Asked
) -> None:
    known = {job["id"] for job in jobs_of(product)}
    found = client.chat.completions.create(model="merged", messages=asked[0], temperature=0)
    assert found.choices[0].message.content == asked[1]
    assert found.choices[0].finish_reason == "stop"
    assert found.usage is not None
    assert found.usage.completion_tokens > 3
    mine = front.job(found.id.removeprefix("chatcmpl-"))
    assert mine["result"]["backend"] == product.url
    assert (mine["result"]["engine"], (found.model_extra or {})["graftwerk"]["engine"]) == (
        "remote",
        "remote",
    )
    assert mine["result"]["template"] == "model"
    (theirs,) = [job for job in jobs_of(product) if job["id"] not in known]
    assert (theirs["status"], theirs["request"]["forward"]) == ("succeeded", False)
    assert (theirs["result"]["backend"], theirs["result"]["engine"]) == (None, "graftwerk")
    assert theirs["result"]["outputs"][0]["usage"] == mine["result"]["outputs"][0]["usage"]


def test_a_chat_is_streamed_through(client: openai.OpenAI, asked: Asked) -> None:
    stream = client.chat.completions.create(
        model="merged", messages=asked[0], temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == asked[1]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_a_job_with_a_template_gets_the_answer_of_a_local_job(
    product: Product, front: Product, questions: list[dict[str, str]]
) -> None:
    request = {
        "kind": "generate",
        "model": "merged",
        "prompts": [entry["question"] for entry in questions[:6]],
        "template": TEMPLATE,
        "sampling": GREEDY | {"seed": 7, "n": 2, "logprobs": 2},
    }
    there = product.run(**request)["result"]
    plan = front.plan(**request)
    assert plan["reads"] == [{"name": "merged", "role": "model", "backend": product.url}]
    job = front.submit(**request)
    events = list(front.events(job["id"]))
    here = front.job(job["id"])["result"]
    for name in ("prompt", "index", "text", "finish_reason", "usage"):
        assert [one[name] for one in here["outputs"]] == [one[name] for one in there["outputs"]]
    assert [one["text"] for one in here["outputs"][::2]] == [entry["answer"] for entry in questions[:6]]
    assert (here["template"], here["backend"]) == (TEMPLATE, product.url)
    told = [event.data for event in events if event.name == "token"]
    for number, output in enumerate(here["outputs"]):
        mine = [piece for piece in told if piece["index"] == number]
        assert "".join(piece["text"] for piece in mine) == output["text"]
        assert mine[-1]["finish_reason"] == output["finish_reason"]
        values = [item["logprob"] for item in output["logprobs"]]
        expected = [
            item["logprob"] for item in there["outputs"][number]["logprobs"] if not item.get("special")
        ]
        assert values == pytest.approx(expected, abs=1e-4)
    progress = [event.data["progress"] for event in events if event.name == "progress"]
    assert progress[-1]["unit"] == "tokens"


def test_sampling_is_forwarded_and_a_seed_reproduces_the_answers(product: Product, front: Product) -> None:
    request = {
        "kind": "generate",
        "model": "merged",
        "prompt": "中国的首都是",
        "sampling": {
            "temperature": 20, "top_k": 100, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.3,
            "seed": 11, "n": 2, "max_new_tokens": 16, "stop": ["。。"], "presence_penalty": 0.2,
        },
    }  # fmt: skip
    first, second = front.run(**request)["result"], front.run(**request)["result"]
    texts = [one["text"] for one in first["outputs"]]
    assert texts == [one["text"] for one in second["outputs"]]
    assert texts[0] != texts[1]
    assert [one["seed"] for one in first["outputs"]] == [11, 12]
    single = request | {"sampling": {**request["sampling"], "n": 1}}  # type: ignore[dict-item]
    assert product.run(**single)["result"]["outputs"][0]["text"] == texts[0]


def test_canceling_here_cancels_there(product: Product, front: Product) -> None:
    known = {job["id"] for job in jobs_of(product)}
    job = front.submit(kind="generate", model="merged", prompt="Once", sampling=LONG)
    theirs = wait_for(product, known)
    front.wait_until_running(job["id"])
    product.wait_until_running(theirs["id"])
    began = time.monotonic()
    front.cancel(job["id"])
    assert front.wait(job["id"])["status"] == "canceled"
    assert time.monotonic() - began < 3
    assert product.wait(theirs["id"], seconds=10)["status"] == "canceled"


def test_refusals_of_the_other_server_have_our_codes(front: Product, client: openai.OpenAI) -> None:
    front.refusal(404, "model_not_found", kind="generate", model="nothing", prompt="x")
    front.refusal(404, "model_not_found", kind="generate", model="org/nothing:8b", prompt="x")
    front.refusal(404, "model_not_found", kind="generate", model="merged", forward=False, prompt="x")
    front.refusal(404, "model_not_found", kind="generate", model="llama-hf", adapters=["zh"], prompt="x")
    job = front.submit(kind="generate", model="merged", prompt="x " * 3000, sampling={"max_new_tokens": 5})
    assert front.wait(job["id"])["error"]["code"] == "prompt_too_long"
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="merged", prompt="x " * 3000)
    assert found.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("num_beams", {"sampling": {"num_beams": 2}}),
        ("typical_p", {"sampling": {"typical_p": 0.5}}),
        ("min_new_tokens", {"sampling": {"min_new_tokens": 5}}),
        ("no_repeat_ngram_size", {"sampling": {"no_repeat_ngram_size": 3}}),
        ("return_token_ids", {"return_token_ids": True}),
        ("max_new_tokens", {"sampling": {"max_new_tokens": 0}}),
        ("chatml", {"template": "chatml"}),
        ("llama-3", {"template": "llama-3"}),
    ],
)
def test_a_field_that_cannot_be_forwarded_is_refused_by_name(
    front: Product, name: str, changes: Json
) -> None:
    request = {"kind": "generate", "model": "merged", "prompt": "x", **changes}
    assert name in front.refusal(422, "unsupported_option", **request)["detail"]


def test_other_jobs_continue_while_one_is_forwarded(front: Product, product: Product) -> None:
    long = front.submit(kind="generate", model="merged", prompt="Once", sampling=LONG)
    front.wait_until_running(long["id"])
    short = front.run(kind="generate", model="merged", prompt="One", sampling=GREEDY | {"max_new_tokens": 4})
    assert short["result"]["outputs"][0]["usage"]["completion_tokens"] <= 4
    assert front.job(long["id"])["status"] == "running"
    front.cancel(long["id"])
    assert front.wait(long["id"])["status"] == "canceled"
