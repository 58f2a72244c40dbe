"""A GGUF model in the running product: converted, listed, chatted with, streamed and tokenized."""

import time
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import GREEDY, TEMPLATE
from tests.e2e.product import Product


def test_it_gives_the_trained_answers(
    product: Product, gguf_model: str, questions: list[dict[str, str]]
) -> None:
    job = product.run(
        kind="generate",
        model=gguf_model,
        template=TEMPLATE,
        sampling=GREEDY,
        prompts=[row["question"] for row in questions],
    )
    assert [output["text"] for output in job["result"]["outputs"]] == [row["answer"] for row in questions]
    assert job["result"]["engine"] == "llama.cpp"


def test_it_is_a_model_like_others_under_v1(
    product: Product, gguf_model: str, client: openai.OpenAI, questions: list[dict[str, str]]
) -> None:
    assert gguf_model in {found.id for found in client.models.list()}
    assert httpx.get(f"{product.url}/api/models/{gguf_model}").json()["engine"] == "llama.cpp"
    row = questions[0]
    stream = client.chat.completions.create(
        model=gguf_model, messages=[{"role": "user", "content": row["question"]}], temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == row["answer"]
    texts = [
        httpx.post(
            f"{product.url}/tokenize", json={"model": name, "prompt": row["question"]}, timeout=60
        ).json()
        for name in (gguf_model, "merged")
    ]
    assert texts[0]["tokens"] == texts[1]["tokens"]


def test_the_system_shows_its_process_and_the_version_of_llama_cpp(product: Product, gguf_model: str) -> None:
    product.run(kind="generate", model=gguf_model, prompt="abc", sampling=GREEDY)

    deadline = time.monotonic() + 30
    while True:  # a worker reports after its jobs
        workers = product.get("/api/system")["workers"]
        (worker,) = (found for found in workers if found["queue"] == "generate")
        if (gguf_model, "llama.cpp") in [(item["model"], item["engine"]) for item in worker["processes"]]:
            break
        assert time.monotonic() < deadline, worker
        time.sleep(0.2)
    assert worker["engines"]["llama.cpp"].startswith("xllamacpp 20")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"logit_bias": {"5": 1}, "extra_body": {"repetition_penalty": 1.2}}, "logit_bias"),
        ({"echo": True, "logprobs": 1, "max_tokens": 0}, "score_prompt"),
        ({"extra_body": {"guided_regex": "[ab]+"}}, "guided_regex are not available for this GGUF model"),
    ],
)
def test_what_llama_cpp_does_not_do_is_refused_at_once(
    client: openai.OpenAI, gguf_model: str, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=name) as caught:
        client.completions.create(model=gguf_model, prompt="abc", **options)
    assert "convert" in caught.value.message


def test_vectors_of_it_are_refused_at_once(client: openai.OpenAI, gguf_model: str) -> None:
    with pytest.raises(openai.BadRequestError, match="embed jobs need a huggingface model"):
        client.embeddings.create(model=gguf_model, input="abc")
