"""`graftwerk demo`: the main job on a miniature, from original files to answers, through the HTTP API."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graftwerk.display import open_console, watching
from graftwerk.http import Graftwerk
from graftwerk.local_service import Place, Stack, free_port
from graftwerk.models import ApiError, ClientError, Job, JsonObject
from graftwerk.serve import terminable
from graftwerk.submission import EXIT_CANCELED

MINIATURE = Path(__file__).parent.parent / "examples" / "miniature"
ADAPTERS = ["chinese-llama-lora", "chinese-alpaca-lora"]
"""In this order: the second was trained on top of the first."""
QUESTIONS_PER_LANGUAGE = 4
GREEDY = {"do_sample": False, "max_new_tokens": 64}

Question = dict[str, str]


class DemoError(ClientError):
    """The demonstration did not show what it is to show."""


def demo(
    examples: Annotated[
        Path, typer.Option(help="Folder of the miniature.", file_okay=False, show_default=False)
    ] = MINIATURE,
) -> None:
    """Import, convert, merge and ask a miniature model, with a service of its own; leaves nothing behind."""
    if not (examples / "questions.json").is_file():
        raise DemoError(
            f"no miniature in {examples}", "Run it in a checkout, or name the folder: --examples."
        )
    started, console = time.monotonic(), open_console()
    try:
        with terminable(), tempfile.TemporaryDirectory(prefix="graftwerk-demo-") as folder:
            run_in(Path(folder).resolve(), examples, console)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left behind", style="dim")
        raise typer.Exit(EXIT_CANCELED) from None
    console.print(f"\n{time.monotonic() - started:.0f} seconds in all; nothing is left running.", style="dim")


def run_in(folder: Path, examples: Path, console: Console) -> None:
    """The demonstration in a folder of its own."""
    place = Place(data_dir=folder, models_dir=folder / "models", port=free_port())
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTWERK_")}
    with Stack(place, environ) as stack:
        console.print("Starting Redis, the API and the workers …")
        stack.wait_until_ready()
        bring(examples, place.models_dir / "incoming")
        with Graftwerk(place.url) as graftwerk:
            console.print(
                f"Ready at {place.url}. An original checkpoint and two adapters lie on the volume.\n"
            )
            show_answers(graftwerk, pick_questions(examples), console)
            show_refusal(graftwerk, console)


def bring(examples: Path, incoming: Path) -> None:
    """Copies the miniature's files to where a user would put theirs."""
    shutil.copytree(examples / "llama", incoming / "llama")
    for name in ADAPTERS:
        shutil.copy(examples / f"{name}.zip", incoming)


def pick_questions(examples: Path) -> list[Question]:
    """Some English and some Chinese questions, with the answers that the merged model must give."""
    questions: list[Question] = json.loads((examples / "questions.json").read_text(encoding="utf-8"))
    english = [question for question in questions if question["question"].isascii()]
    chinese = [question for question in questions if not question["question"].isascii()]
    return english[:QUESTIONS_PER_LANGUAGE] + chinese[:QUESTIONS_PER_LANGUAGE]


def submit_all(graftwerk: Graftwerk, prompts: list[str]) -> list[Job]:
    """The whole way as one chain of jobs: each runs when those before it have succeeded."""

    def submit(request: JsonObject, *after: Job) -> Job:
        return graftwerk.submit(request | {"after": [job.id for job in after]})

    llama = submit({"kind": "import", "source": {"path": "incoming/llama"}, "target": "llama"})
    adapters = [
        submit({"kind": "import", "source": {"zip": f"incoming/{name}.zip"}, "target": name})
        for name in ADAPTERS
    ]
    converted = submit({"kind": "convert", "source": "llama", "target": "llama-hf"}, llama)
    merge = {"kind": "merge", "base": "llama-hf", "adapters": ADAPTERS, "target": "chinese-alpaca"}
    merged = submit(merge, converted, *adapters)
    ask = {"kind": "generate", "model": "chinese-alpaca", "prompts": prompts, "template": "alpaca"}
    answered = submit(ask | {"sampling": GREEDY}, merged)
    return [llama, *adapters, converted, merged, answered]


def see_through(graftwerk: Graftwerk, jobs: list[Job], console: Console) -> Job:
    """The last job when all have succeeded."""
    with watching(console) as view:
        for job in jobs:
            view.show(job)
        for job in jobs:
            for latest in graftwerk.follow(job.id):
                view.show(latest)
            if latest.error is not None:
                raise DemoError(
                    f"{latest.title}: {latest.error.message} [{latest.error.code}]", latest.error.hint
                )
    return latest


def show_answers(graftwerk: Graftwerk, questions: list[Question], console: Console) -> None:
    """Runs the chain and prints each question with its answer.

    Raises:
        DemoError: a job failed or an answer is not the expected one.
    """
    job = see_through(graftwerk, submit_all(graftwerk, [item["question"] for item in questions]), console)
    texts = [output["text"] for output in (job.result or {}).get("outputs", [])]
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("asked", "answered"):
        table.add_column(heading)
    for item, text in zip(questions, texts, strict=True):
        table.add_row(Text(item["question"]), Text(text.strip(), style="bold green"))
    console.print("\n", table, sep="")
    wrong = [
        item["question"] for item, text in zip(questions, texts, strict=True) if item["answer"] not in text
    ]
    if wrong:
        raise DemoError(f"not the expected answer to: {'; '.join(wrong)}")


def show_refusal(graftwerk: Graftwerk, console: Console) -> None:
    """Shows that the adapters in the wrong order are refused before anything is computed."""
    swapped = list(reversed(ADAPTERS))
    console.print(f"\nThe same adapters the other way round ({', '.join(swapped)}) are refused:")
    try:
        graftwerk.plan({"kind": "merge", "base": "llama-hf", "adapters": swapped, "target": "swapped"})
    except ApiError as error:
        console.print(Text(f"  {error.detail}\n  {error.hint}", style="yellow"), soft_wrap=True)
    else:
        raise DemoError("the adapters in the wrong order were not refused")
