"""`/compare`: the last question, answered by two models with the same seed."""

from rich.console import Console
from rich.text import Text

from graftwerk.display import print_outputs
from graftwerk.inference_results import CompareResult, FirstDifference, Output

MARK = "▶"
"""Stands before the first character that differs."""


def print_two_answers(console: Console, result: CompareResult) -> None:
    """Prints the answers of both models, with a mark at the first difference."""
    for comparison in result.comparisons:
        difference = next(iter(comparison.differences), None)
        for variant, output in zip(result.variants, comparison.outputs, strict=True):
            console.print(Text(f"{variant.label}:", style="cyan"), soft_wrap=True)
            print_answer(console, output, difference.character if difference else None)
        console.print(Text(_finding(difference, result.seed), style="dim"), soft_wrap=True)


def _finding(difference: FirstDifference | None, seed: int) -> str:
    if difference is None:  # an answer failed
        return f"The answers were not compared. Seed {seed}."
    if difference.token is None:
        return f"The answers are equal. Seed {seed}."
    return f"The answers differ from token {difference.token + 1} on. Seed {seed}."


def print_answer(console: Console, output: Output, character: int | None) -> None:
    """Prints one answer, marked and highlighted from a character on."""
    if output.error is not None or character is None:
        print_outputs(console, [output])
        return
    text = (output.text or "").replace("\x1b", "␛" if console.is_terminal else "\x1b")
    before, after = text[:character], text[character:]
    console.print(Text.assemble(before, (MARK, "bold yellow"), (after, "yellow")), soft_wrap=True)
