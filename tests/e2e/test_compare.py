"""Models side by side over HTTP."""

from tests.e2e.conftest import GREEDY, TEMPLATE, Line
from tests.e2e.product import Product

ON_THE_FLY = {"model": "llama-hf", "adapters": ["zh", "alpaca"]}
VARIANTS = [{"model": "llama-hf"}, ON_THE_FLY, {"model": "merged"}]


def test_adapters_on_the_fly_are_the_merged_model(
    product: Product, line: Line, questions: list[dict[str, str]]
) -> None:
    prompts = [row["question"] for row in questions]
    sampling = GREEDY | {"repetition_penalty": 1}
    job = product.run(
        kind="compare", variants=VARIANTS, prompts=prompts, template=TEMPLATE, sampling=sampling
    )
    pairs = {tuple(pair["variants"]): pair["equal"] for pair in job["result"]["pairs"]}
    assert pairs["llama-hf+zh+alpaca", "merged"] == len(prompts)
    assert pairs["llama-hf", "merged"] < len(prompts)
    texts = [row["outputs"][2]["text"] for row in job["result"]["comparisons"]]
    assert texts == [row["answer"] for row in questions]


def test_a_variant_whose_model_does_not_exist_is_refused_at_once(product: Product, line: Line) -> None:
    request = {"kind": "compare", "prompt": "hello", "variants": [*VARIANTS, {"model": "nothing"}]}
    product.refusal(404, "model_not_found", **request)
    plan = product.plan(kind="compare", prompt="hello", variants=VARIANTS)
    assert [read["name"] for read in plan["reads"]] == ["llama-hf", "zh", "alpaca", "merged"]
