"""The merged miniature expects its own answers better than its base does."""

from pathlib import Path

from tests.e2e.conftest import Line
from tests.e2e.product import Product


def test_merging_lowers_the_perplexity_of_the_answers_that_it_taught(
    product: Product, line: Line, questions: list[dict[str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "answers.txt"
    file.write_text("\n".join(entry["answer"] for entry in questions), encoding="utf-8")
    windows = {"text_file": product.volume.put_incoming(file, "answers.txt"), "context": 64, "stride": 32}
    plan = product.plan(kind="perplexity", model="merged", **windows)
    assert [read["name"] for read in plan["reads"]] == ["merged"]

    base = product.run(kind="perplexity", model="llama-hf", **windows)["result"]
    merged = product.run(kind="perplexity", model="merged", **windows)["result"]
    unmerged = product.run(kind="perplexity", model="llama-hf", adapters=["zh", "alpaca"], **windows)[
        "result"
    ]

    assert merged["perplexity"] < base["perplexity"]
    assert merged["bits_per_byte"] < base["bits_per_byte"]
    assert unmerged["perplexity"] == merged["perplexity"]
    assert merged["windows"] > 1
    assert merged["tokens"] > 100


def test_a_missing_text_file_is_refused_before_the_job_is_queued(product: Product, line: Line) -> None:
    product.refusal(404, "source_not_found", kind="perplexity", model="merged", text_file="incoming/no.txt")
    product.refusal(422, "invalid_request", kind="perplexity", model="merged")
