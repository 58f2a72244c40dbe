"""Report of a run as Markdown, and its place in `docs/reliability.md`."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.driver import Outcome
from tests.chaos.faults import FAULTS
from tests.chaos.recovery import figures, measure

BEGIN, END = "<!-- chaos: written by make chaos -->", "<!-- chaos: end -->"


def markdown(outcome: Outcome, command: str, heading: str) -> str:
    """Returns the tables of a run."""
    lines = [heading, "", f"`{command}`", ""]
    lines += [*_recovery(outcome), "", *_jobs(outcome), "", *_keys(outcome)]
    if outcome.missing:
        lines += ["", *(f"Left out: faults of the {part}, because {why}." for part, why in outcome.missing.items())]  # fmt: skip
    lines += ["", f"Problems: {len(outcome.account.problems)}.", ""]
    return "\n".join(lines)


def _recovery(outcome: Outcome) -> Iterator[str]:
    yield "| fault | times | running jobs hit | put back | until put back, s | until running again, s | until the process is back, s |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    table = measure(outcome.faults, outcome.recorder)
    for name in [*(fault.name for fault in FAULTS), "poison job"]:
        if name in table:
            row = table[name]
            yield (
                f"| {name} | {row.count} | {row.victims} | {len(row.noticed)} | {figures(row.noticed)} "
                f"| {figures(row.again)} | {figures(row.back)} |"
            )
    yield ""
    yield "Times are median / worst. Jobs that were hit and not put back ended or went on undisturbed."


def _jobs(outcome: Outcome) -> Iterator[str]:
    found = outcome.account
    yield "| jobs | number |"
    yield "|---|--:|"
    for (status, code), count in sorted(found.outcomes.items()):
        yield f"| {status}{f' (`{code}`)' if code else ''} | {count} |"
    yield f"| all, each with one end | {sum(found.outcomes.values())} |"
    yield f"| executions | {found.executions} |"
    yield f"| models published once, verified, and equal to the undisturbed run's | {found.models} |"
    yield f"| results with text, equal to the undisturbed run's | {found.texts} |"
    yield f"| answers of `/v1/responses`, equal to the undisturbed one and stored | {len(outcome.dialogue.answers)} |"
    yield f"| streams, joined text equal to the result's | {found.streams} |"


def _keys(outcome: Outcome) -> Iterator[str]:
    yield "| keys in Redis at the end | number | at most |"
    yield "|---|--:|--:|"
    for row in outcome.keys:
        yield f"| {row.reason} | {row.count} | {row.limit} |"


def write_section(page: Path, text: str) -> None:
    """Replaces the tables of the last run on the page.

    Raises:
        ValueError: the page has no place for them.
    """
    content = page.read_text(encoding="utf-8")
    section = f"{BEGIN}\n{text}\n{END}"
    written, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: section, content, flags=re.DOTALL)  # fmt: skip
    if count != 1:
        raise ValueError(f"{page} needs one place for the tables, between {BEGIN!r} and {END!r}.")
    page.write_text(written, encoding="utf-8")
