"""A model is checked against its manifest and against its base and adapters."""

from tests.e2e.conftest import Line
from tests.e2e.product import Product


def test_the_merged_model_agrees_with_base_and_adapters(product: Product, line: Line) -> None:
    plan = product.plan(kind="verify", model="merged", base="llama", adapters=["zh", "alpaca"])
    assert [entry["name"] for entry in plan["reads"]] == ["merged", "llama", "zh", "alpaca"]
    result = product.run(kind="verify", model="merged", base="llama", adapters=["zh", "alpaca"])["result"]
    assert (result["passed"], result["differences"]) == (True, [])
    assert result["against"] == ["manifest", "base and adapters"]
    assert result["logits"]["greedy_agreement"] == 1
    assert result["digests_equal"] == result["tensors"]


def test_a_missing_adapter_is_found(product: Product, line: Line) -> None:
    result = product.run(kind="verify", model="merged", base="llama", adapters=["zh"])["result"]
    assert not result["passed"]
    shapes = [item["message"] for item in result["differences"] if item["tensor"] == "lm_head.weight"]
    assert "has shape" in shapes[0]


def test_a_model_with_no_manifest_and_no_base_is_refused(product: Product, line: Line) -> None:
    product.refusal(422, "invalid_request", kind="verify", model="merged", adapters=["zh"])
    product.refusal(404, "model_not_found", kind="verify", model="absent")


def test_the_same_merge_under_another_name_is_found_at_once(product: Product, line: Line) -> None:
    result = product.run(kind="merge", base="llama-hf", adapters=["zh", "alpaca"], target="once-more")[
        "result"
    ]
    assert result["same_as"] in product.model_names(), "other tests may have made the same one"
    assert result["tensor_digest"] == line.merge["result"]["tensor_digest"]
    product.http.delete("/api/models/once-more")
