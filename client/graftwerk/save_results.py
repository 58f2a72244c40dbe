"""`generate --output`: outputs of a job in a local file."""

import json
from pathlib import Path

from graftwerk.errors import ClientError, UsageError
from graftwerk.inference_results import GenerateResult
from graftwerk.job_handle import JobHandle

LINES = ".jsonl"


def check_output(output: Path, *, on_the_volume: bool) -> None:
    """Refuses a file that could not be written once the job has ended.

    Args:
        on_the_volume: the prompts are in a file on the volume.

    Raises:
        UsageError: the folder does not exist, or JSON lines are requested for a job that has none.
    """
    if not output.absolute().parent.is_dir():
        raise UsageError(f"The folder {output.absolute().parent} does not exist.", "Create it first.")
    if output.suffix == LINES and not on_the_volume:
        raise UsageError(
            f"{output} names a file of JSON lines, which only jobs with a prompts file on the volume write.",
            "Name it .json, or put the prompts into incoming/ on the volume.",
        )


def save_outputs(handle: JobHandle, output: Path) -> None:
    """Writes the outputs of a job that has succeeded.

    A name that ends in `.jsonl` gets one JSON object per prompt with all fields, any other name a list of
    `{"Input": ..., "Output": ...}`.

    Raises:
        ClientError: the file cannot be written, or the service does not return the outputs.
    """
    result = handle.job.result
    try:
        if isinstance(result, GenerateResult) and result.results_file is None:
            rows = [{"Input": one.prompt, "Output": one.text} for one in result.outputs]
            output.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        else:
            handle.save_results("lines" if output.suffix == LINES else "predictions", output)
    except OSError as error:
        raise ClientError(f"The file {output} cannot be written: {error.strerror}.") from error
