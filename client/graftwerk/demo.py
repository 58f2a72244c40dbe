"""`graftwerk demo`: the main workflow on a miniature, from original files to generated text, over the HTTP API."""

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from graftwerk.client import Client
from graftwerk.display import open_console
from graftwerk.errors import ApiError, ClientError
from graftwerk.inference_results import GenerateResult
from graftwerk.job_handle import JobHandle
from graftwerk.local_service import LocalService, free_port
from graftwerk.models import Job
from graftwerk.progress_display import progress_view
from graftwerk.request_parts import Sampling
from graftwerk.serve import start, terminable
from graftwerk.service_distribution import checkout_folder, require_service
from graftwerk.submission import EXIT_CANCELED
from graftwerk.supervisor_config import ServiceLocation

ADAPTERS = ["chinese-llama-lora", "chinese-alpaca-lora"]
"""In order: the second was trained on top of the first."""
QUESTIONS_PER_LANGUAGE = 4
GREEDY: Sampling = {"do_sample": False, "max_new_tokens": 64}

Question = dict[str, str]


class DemoError(ClientError):
    """The demonstration cannot run, or did not give the expected outputs."""


def demo(examples: Path | None) -> None:
    """Imports, converts, merges and queries a miniature model with a service of its own; removes everything it made.

    Args:
        examples: folder of the miniature; None is that of the checkout.
    """
    require_service()
    examples = examples or find_miniature()
    if not (examples / "questions.json").is_file():
        raise DemoError(f"The folder {examples} has no miniature.", "Give its folder with --examples.")
    started, console = time.monotonic(), open_console()
    try:
        with terminable(), tempfile.TemporaryDirectory(prefix="graftwerk-demo-") as folder:
            run_in(Path(folder).resolve(), examples, console)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left behind", style="dim")
        raise typer.Exit(EXIT_CANCELED) from None
    console.print(f"\n{time.monotonic() - started:.0f} seconds in all; nothing is left running.", style="dim")


def find_miniature() -> Path:
    """Returns the folder of the miniature in the checkout that the service is installed from.

    Raises:
        DemoError: the service is not installed from a checkout.
    """
    checkout = checkout_folder()
    if checkout is None:
        raise DemoError(
            "The service is not installed from a checkout, which contains the miniature.",
            "Run `make demo` in a checkout, or give the folder with --examples.",
        )
    return checkout / "examples" / "miniature"


def run_in(folder: Path, examples: Path, console: Console) -> None:
    """Runs the demonstration with its data in a folder."""
    location = ServiceLocation(data_dir=folder, models_dir=folder / "models", port=free_port())
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTWERK_")}
    with LocalService(location, environ) as service:
        start(service, console)
        copy_miniature(examples, location.models_dir / "incoming")
        with Client(location.url) as client:
            console.print(
                f"Ready at {location.url}. An original checkpoint and two adapters are on the volume.\n"
            )
            show_outputs(client, pick_questions(examples), console)
            show_refusal(client, console)


def copy_miniature(examples: Path, incoming: Path) -> None:
    """Copies the miniature's files to the folder for imports."""
    shutil.copytree(examples / "llama", incoming / "llama")
    for name in ADAPTERS:
        shutil.copy(examples / f"{name}.zip", incoming)


def pick_questions(examples: Path) -> list[Question]:
    """Returns some English and some Chinese questions, with the answers that the merged model must give."""
    questions: list[Question] = json.loads((examples / "questions.json").read_text(encoding="utf-8"))
    english = [question for question in questions if question["question"].isascii()]
    chinese = [question for question in questions if not question["question"].isascii()]
    return english[:QUESTIONS_PER_LANGUAGE] + chinese[:QUESTIONS_PER_LANGUAGE]


def submit_all(client: Client, prompts: list[str]) -> tuple[list[JobHandle], JobHandle[GenerateResult]]:
    """Submits all jobs at once, each to run after those that it needs; returns the last one apart."""
    llama = client.import_(source={"path": "incoming/llama"}, target="llama")
    adapters = [client.import_(source={"zip": f"incoming/{name}.zip"}, target=name) for name in ADAPTERS]
    converted = client.convert(source="llama", target="llama-hf", after=[llama.id])
    inputs = [converted.id, *(adapter.id for adapter in adapters)]
    merged = client.merge(base="llama-hf", adapters=[*ADAPTERS], target="chinese-alpaca", after=inputs)
    generated = client.generate(
        model="chinese-alpaca", prompts=prompts, template="alpaca", sampling=GREEDY, after=[merged.id]
    )
    return [llama, *adapters, converted, merged], generated


def wait_for_all(handles: list[JobHandle], console: Console) -> None:
    """Shows the progress of jobs until all have succeeded.

    Raises:
        DemoError: a job failed.
    """
    with progress_view(console) as view:
        for handle in handles:
            view.show(handle.job)
        for handle in handles:
            for event in handle.events():
                if isinstance(event, Job):
                    view.show(event)
            if (error := handle.job.error) is not None:
                raise DemoError(f"{handle.job.title}: {error.message} [{error.code}]", error.hint)


def show_outputs(client: Client, questions: list[Question], console: Console) -> None:
    """Runs all jobs and prints each question with the model's output.

    Raises:
        DemoError: a job failed or an output is not the expected one.
    """
    handles, generated = submit_all(client, [item["question"] for item in questions])
    wait_for_all([*handles, generated], console)
    outputs = generated.job.result.outputs if generated.job.result else []
    texts = [output.text or "" for output in outputs]
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for heading in ("question", "output"):
        table.add_column(heading)
    for item, text in zip(questions, texts, strict=True):
        table.add_row(Text(item["question"]), Text(text.strip(), style="bold green"))
    console.print("\n", table, sep="")
    wrong = [
        item["question"] for item, text in zip(questions, texts, strict=True) if item["answer"] not in text
    ]
    if wrong:
        raise DemoError(f"The output is not the expected one for: {'; '.join(wrong)}")


def show_refusal(client: Client, console: Console) -> None:
    """Shows that the adapters in the wrong order are refused before anything is computed."""
    swapped = list(reversed(ADAPTERS))
    console.print(f"\nThe same adapters in the other order ({', '.join(swapped)}) are refused:")
    try:
        client.plan({"kind": "merge", "base": "llama-hf", "adapters": swapped, "target": "swapped"})
    except ApiError as error:
        console.print(Text(f"  {error.detail}\n  {error.hint}", style="yellow"), soft_wrap=True)
    else:
        raise DemoError("The adapters in the wrong order were not refused.")
