"""The miniature's extended vocabulary equals that of its adapter, byte for byte."""

from tests.e2e.conftest import Line
from tests.e2e.product import Product


def file_of(product: Product, model: str) -> bytes:
    answer = product.http.get(f"/api/models/{model}/files/tokenizer.model")
    assert answer.status_code == 200
    return answer.content


def test_an_extended_vocabulary_is_the_adapters_own_byte_for_byte(product: Product, line: Line) -> None:
    request = {"kind": "extend-tokenizer", "base": "llama", "addition": "zh", "pad_token": "[PAD]"}
    plan = product.plan(**request, target="extended")
    job = product.run(**request, target="extended")

    assert file_of(product, "extended") == file_of(product, "alpaca") != file_of(product, "zh")
    counts = job["result"]["counts"]
    assert counts["base"] + counts["added"] == counts["total"] == plan["writes"]["vocabulary_size"]
    assert counts["present"] == counts["base"]
    chinese = job["result"]["samples"][0]
    assert chinese["tokens_after"] < chinese["tokens_before"]
    model = product.get("/api/models/extended")
    assert (model["kind"], model["vocabulary_size"], model["problems"]) == ("tokenizer", counts["total"], [])
    roles = [(entry["role"], entry["name"]) for entry in model["lineage"]["inputs"]]
    assert roles == [("base", "llama"), ("addition", "zh")]


def test_a_vocabulary_that_adds_nothing_is_refused_before_it_is_queued(product: Product, line: Line) -> None:
    detail = product.refusal(
        422, "invalid_request", kind="extend-tokenizer", base="zh", addition="llama", target="nothing"
    )["detail"]
    assert "nothing would be added" in detail
    assert "nothing" not in product.model_names()
