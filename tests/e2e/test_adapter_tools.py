"""Adapters that are extracted from the merged miniature, and combined."""

import torch
from safetensors.torch import load

from tests.e2e.conftest import GREEDY, TEMPLATE, Line
from tests.e2e.product import Product


def weights(product: Product, model: str) -> dict[str, torch.Tensor]:
    answer = product.http.get(f"/api/models/{model}/files/model.safetensors")
    assert answer.status_code == 200
    return load(answer.content)


def test_an_adapter_of_the_merged_model_gives_it_back(
    product: Product, line: Line, questions: list[dict[str, str]]
) -> None:
    names = {"kind": "extract", "base": "llama-hf", "model": "merged"}
    plan = product.plan(**names, rank=32, target="extracted")
    job = product.run(**names, rank=32, target="extracted")
    result = job["result"]
    assert result["error"] < 0.05
    assert result["bytes_written"] <= plan["output_bytes"]

    product.run(kind="merge", base="llama-hf", adapters=["extracted"], target="merged-again")

    found, expected = weights(product, "merged-again"), weights(product, "merged")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= 0.01 * float(tensor.abs().max()), name
    text = product.run(
        kind="generate",
        model="merged-again",
        prompt=questions[0]["question"],
        template=TEMPLATE,
        sampling=GREEDY,
    )["result"]["outputs"][0]["text"]
    assert text == questions[0]["answer"]


def test_a_base_of_another_vocabulary_is_refused_before_it_is_queued(product: Product, line: Line) -> None:
    detail = product.refusal(
        422, "vocabulary_mismatch", kind="extract", base="merged", model="llama-hf", rank=4, target="nothing"
    )["detail"]
    assert "an adapter cannot remove rows" in detail
    assert "nothing" not in product.model_names()


def test_a_combined_adapter_merges_to_the_same_answers(
    product: Product, line: Line, questions: list[dict[str, str]]
) -> None:
    product.refusal(422, "unsupported_adapter", kind="combine", adapters=["zh", "alpaca"], target="nothing")
    names = {"kind": "extract", "base": "llama-hf", "model": "merged"}
    product.run(**names, rank=32, target="whole")
    halves = [{"name": "whole", "scale": 0.5}]
    product.run(kind="combine", adapters=halves, target="half")
    adapters = [{"name": "half", "scale": 1.5}, {"name": "whole", "scale": 0.25}]

    job = product.run(kind="combine", adapters=adapters, rank=32, target="sum")

    assert job["result"]["error"] < 1e-5
    product.run(kind="merge", base="llama-hf", adapters=["sum"], target="merged-sum")
    answers = product.run(
        kind="generate",
        model="merged-sum",
        prompts=[entry["question"] for entry in questions[:3]],
        template=TEMPLATE,
        sampling=GREEDY,
    )["result"]["outputs"]
    assert [answer["text"] for answer in answers] == [entry["answer"] for entry in questions[:3]]
