"""Output of the commands: results and tables on stdout, errors in two lines on stderr."""

import json
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from graftwerk.inference_results import (
    CompareResult,
    EmbedResult,
    FirstDifference,
    GenerateResult,
    Output,
    TokenizeResult,
)
from graftwerk.model_results import MadeModel, VerifyResult
from graftwerk.models import Job, fields_of
from graftwerk.outcome import outcome_line
from graftwerk.result import JobResult
from graftwerk.tables import facts_view

PIPE_COLUMNS = 100
"""Width of tables where the output is not a terminal."""

MOST_DIFFERENCES = 5
"""Deviations of a verification that are listed without --verbose."""


def open_console(*, stderr: bool = False) -> Console:
    """Returns a console for results, or with `stderr` for messages. Lines in a pipe are not wrapped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else PIPE_COLUMNS)


# ---- results ------------------------------------------------------------------------------------------


def print_result(job: Job, *, verbose: bool = False, with_next: bool = True) -> None:
    """Prints a succeeded job: its texts or vectors on stdout, and one line about it; with `verbose` also all details.

    The line is on stderr where texts or vectors are on stdout, which programs read.

    Args:
        with_next: names the command that comes next.
    """
    console, result = open_console(), job.result
    has_content = _print_content(console, result)
    notes = open_console(stderr=True) if has_content else console
    print_line(notes, outcome_line(job, with_next=with_next), style="dim" if has_content else "")
    if isinstance(result, MadeModel):
        for warning in (*result.warnings, *result.model.problems):
            warn(warning)
    if isinstance(result, VerifyResult):
        _print_differences(console, result, None if verbose else MOST_DIFFERENCES)
    if result is not None and (
        verbose or type(result) is JobResult
    ):  # no sentence describes an unknown result
        details = {name: value for name, value in fields_of(result).items() if name not in _CONTENT}
        notes.print(facts_view(details))


_CONTENT = ("outputs", "differences", "embeddings", "comparisons", "token_ids", "texts", "pieces")
"""Fields of results that are printed as text, with and without details."""


def _print_content(console: Console, result: JobResult | None) -> bool:
    """Prints texts and vectors; returns False for a result without any."""
    if isinstance(result, CompareResult):
        print_comparison(console, result)
    elif isinstance(result, GenerateResult) and result.results_file is None:
        print_outputs(console, result.outputs)
    elif isinstance(result, EmbedResult):
        for embedding in result.embeddings:
            console.print(json.dumps(embedding), soft_wrap=True, markup=False)
    elif isinstance(result, TokenizeResult):
        for line in result.pieces or result.token_ids or result.texts or []:
            text = line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)
            console.print(text, soft_wrap=True, markup=False, highlight=False)
    else:
        return False
    return True


def _print_differences(console: Console, result: VerifyResult, limit: int | None) -> None:
    for difference in result.differences[:limit]:
        print_line(console, f"  {difference.tensor or difference.file or result.model}: {difference.message}")
    if limit is not None and len(result.differences) > limit:
        print_line(console, f"  and {len(result.differences) - limit:,} more; --verbose lists them")


def print_outputs(console: Console, outputs: Sequence[Output]) -> None:
    """Prints generated texts unchanged, each below its prompt if there are several."""
    for output in outputs:
        if len(outputs) > 1:
            console.print(Text(output.prompt or f"output {output.index + 1}", style="bold"), soft_wrap=True)
        if output.error is not None:
            complain(console, output.error.message, output.error.hint)
            continue
        if output.text or not output.tool_calls:
            print_text(console, output.text or "")
        for call in output.tool_calls or []:
            print_text(console, f"{call.name}({call.arguments})")


def print_comparison(console: Console, result: CompareResult) -> None:
    """Prints the variants' outputs for each prompt and their first differences."""
    labels = [variant.label for variant in result.variants]
    for comparison in result.comparisons:
        console.print(Text(comparison.prompt, style="bold"), soft_wrap=True)
        for label, output in zip(labels, comparison.outputs, strict=True):
            console.print(Text(f"{label}:", style="cyan"), soft_wrap=True)
            print_outputs(console, [output])
        for difference in comparison.differences:
            console.print(Text(_difference_line(difference), style="dim"), soft_wrap=True)
    for pair in result.pairs:
        one, other = pair.variants
        line = f"{one} and {other}: {pair.equal} of {pair.compared} outputs equal"
        console.print(Text(line, style="dim"), soft_wrap=True)
    console.print(Text(f"seed {result.seed}", style="dim"))


def _difference_line(difference: FirstDifference) -> str:
    one, other = difference.variants
    if difference.token is None:
        return f"{one} = {other}"
    position = f"token {difference.token}"
    if difference.character is not None:
        position += f", character {difference.character}"
    return f"{one} ≠ {other} from {position} on"


def print_text(console: Console, text: str) -> None:
    """Prints a model's text unchanged; on a terminal, escape sequences are made visible."""
    console.print(Text(_without_escapes(console, text)), soft_wrap=True)


def print_piece(console: Console, text: str, *, style: str | None = None) -> None:
    """Prints a piece of a model's text directly after the previous one."""
    console.out(_without_escapes(console, text), end="", highlight=False, style=style)


def _without_escapes(console: Console, text: str) -> str:
    return text.replace("\x1b", "␛") if console.is_terminal else text


def print_line(console: Console, line: str | Text, *, style: str = "") -> None:
    """Prints a sentence as one line, which the terminal wraps: a command in it can be copied."""
    console.print(Text(line) if isinstance(line, str) else line, style=style, soft_wrap=True)


def note(line: str, *, style: str = "") -> None:
    """Prints a message on stderr."""
    print_line(open_console(stderr=True), line, style=style)


def warn(warning: str) -> None:
    """Prints a warning on stderr."""
    note(f"warning: {warning}", style="yellow")


def complain(console: Console, detail: str, hint: str = "") -> None:
    """Prints an error in two lines: the finding and the remedy."""
    print_line(console, Text.assemble(("error: ", "bold red"), detail))
    if hint:
        print_line(console, f"       {hint}", style="dim")
