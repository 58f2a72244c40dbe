"""Parts of results that jobs of the same recipe have in common, with or without faults."""

from collections.abc import Callable, Mapping

from tests.chaos.recipes import RECIPES, Json


def _texts(result: Json) -> object:
    return [
        [output["text"], output.get("token_ids"), _calls(output), result["engine"]]
        for output in result["outputs"]
    ]


def _calls(output: Json) -> object:
    return [[call["name"], call["arguments"]] for call in output.get("tool_calls") or []]


def _comparison(result: Json) -> object:
    return [[output["text"] for output in row["outputs"]] for row in result["comparisons"]]


def _verdict(result: Json) -> object:
    return [result["passed"], result["differences"]]


RESULT_OF_KIND: Mapping[str, Callable[[Json], object]] = {
    "generate": _texts,
    "compare": _comparison,
    "verify": _verdict,
    "embed": lambda result: [[round(number, 4) for number in vector] for vector in result["embeddings"]],
    "perplexity": lambda result: round(result["perplexity"], 4),
    "tokenize": lambda result: result["token_ids"],
}
"""Parts of a result that must be equal. A batch changes the last bits of floating-point numbers, hence four digits."""


def decisive(name: str, result: Json) -> object:
    """Returns the part of a result that jobs of a recipe have in common: of outputs that a crowd may change, their lengths."""
    recipe = RECIPES[name]
    if recipe.is_repeatable:
        return RESULT_OF_KIND[recipe.request["kind"]](result)
    return [[len(output["token_ids"]), output["finish_reason"]] for output in result["outputs"]]
