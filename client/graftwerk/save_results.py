"""What `generate --output` writes: the answers as a file on this machine."""

import json
from pathlib import Path

from graftwerk.http import Graftwerk
from graftwerk.models import ClientError, Job, UsageError

LINES = ".jsonl"


def check_output(output: Path, *, on_the_volume: bool) -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        UsageError: its folder is not there, or lines are asked for and there will be none.
    """
    if not output.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {output.absolute().parent}", "Make it first.")
    if output.suffix == LINES and not on_the_volume:
        raise UsageError(
            f"{output} asks for one object a line, which only jobs with a file on the volume write",
            "Name it .json, or put the prompts into incoming/ on the volume.",
        )


def save_answers(graftwerk: Graftwerk, job: Job, output: Path) -> None:
    """Write the answers of a job that has succeeded.

    A name that ends in `.jsonl` gets one JSON object a prompt with all that is known of it, every other one a list of
    `{"Input": ..., "Output": ...}`.

    Raises:
        ClientError: the file cannot be written, or the service did not give it.
    """
    result = job.result or {}
    try:
        if "results_file" in result:
            graftwerk.save_results(job.id, "lines" if output.suffix == LINES else "predictions", output)
        else:
            rows = [{"Input": one["prompt"], "Output": one.get("text")} for one in result["outputs"]]
            output.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ClientError(f"cannot write {output}: {error.strerror}") from error
