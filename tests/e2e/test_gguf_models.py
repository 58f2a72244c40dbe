"""A GGUF model in the running product: converted, listed, chatted with, streamed and tokenized; a killed worker."""

import os
import signal
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.e2e.conftest import GREEDY, TEMPLATE, Line
from tests.e2e.product import LocalStack, Product, is_alive


@pytest.fixture(scope="module")
def model(product: Product, line: Line) -> str:
    """The merged miniature as a GGUF file of 16-bit numbers."""
    product.run(kind="convert", source="merged", target="merged-gguf", output_format="gguf", dtype="float16")
    return "merged-gguf"


@pytest.fixture(scope="module")
def client(product: Product, model: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{product.url}/v1", api_key="none", max_retries=0, timeout=120) as found:
        yield found


def test_it_gives_the_trained_answers(product: Product, model: str, questions: list[dict[str, str]]) -> None:
    job = product.run(
        kind="generate",
        model=model,
        template=TEMPLATE,
        sampling=GREEDY,
        prompts=[row["question"] for row in questions],
    )
    assert [output["text"] for output in job["result"]["outputs"]] == [row["answer"] for row in questions]
    assert job["result"]["engine"] == "llama.cpp"


def test_it_is_a_model_like_others_under_v1(
    product: Product, model: str, client: openai.OpenAI, questions: list[dict[str, str]]
) -> None:
    assert model in {found.id for found in client.models.list()}
    assert httpx.get(f"{product.url}/api/models/{model}").json()["engine"] == "llama.cpp"
    row = questions[0]
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": row["question"]}], temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == row["answer"]
    texts = [
        httpx.post(
            f"{product.url}/tokenize", json={"model": name, "prompt": row["question"]}, timeout=60
        ).json()
        for name in (model, "merged")
    ]
    assert texts[0]["tokens"] == texts[1]["tokens"]


def test_what_llama_cpp_does_not_do_is_refused_at_once(client: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        client.completions.create(model=model, prompt="abc", presence_penalty=1)


def test_a_killed_worker_leaves_no_process_and_its_jobs_run_again(
    product: Product, stack: LocalStack, model: str
) -> None:
    endless = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 1500, "logit_bias": {"2": -100}}
    job = product.submit(kind="generate", model=model, prompt="abc", sampling=endless)
    product.wait_until_running(job["id"])
    while not (programs := processes(stack, "llama_cpp_program.py")):
        time.sleep(0.05)
    workers = [pid for pid in processes(stack, "-m worker generate") if pid not in programs]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(is_alive, programs)):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    outputs = product.succeeded(job["id"])["result"]["outputs"]
    assert outputs[0]["usage"]["completion_tokens"] == 1500


def processes(stack: LocalStack, words: str) -> list[int]:
    return [pid for pid, line in stack.descendants().items() if words in line]
