"""lm-eval with its own model for transformers, and with the same files over the service: each log-likelihood is the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import MODEL, Service, output_of
from tests.clients.environments import program_of
from tests.clients.evaluation_tasks import write_tasks

TASKS = {"graftwerk_choice": 200, "graftwerk_rolling": 50}


def evaluate(folder: Path, name: str, model: str, arguments: str) -> dict[str, list[list[float]]]:
    """Returns the log-likelihoods of each document, by task."""
    command: list[str | Path] = [
        program_of("lm-eval", "lm_eval"),
        "--model",
        model,
        "--model_args",
        arguments,
    ]
    command += ["--include_path", folder, "--tasks", ",".join(TASKS), "--batch_size", "8"]
    command += ["--device", "cpu", "--log_samples", "--output_path", folder / name]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    output_of(command, home=folder, variables=offline)
    return {task: read_samples(folder / name, task) for task in TASKS}


def read_samples(folder: Path, task: str) -> list[list[float]]:
    (file,) = folder.rglob(f"samples_{task}_*.jsonl")
    samples: list[dict[str, Any]] = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    ordered = sorted(samples, key=lambda sample: int(sample["doc_id"]))
    return [[likelihood_of(answer[0]) for answer in sample["resps"]] for sample in ordered]


def likelihood_of(answer: Any) -> float:
    """Returns the log-likelihood of an answer: alone, or next to whether the text is the most likely one."""
    return float(answer[0] if isinstance(answer, list) else answer)


def test_each_log_likelihood_is_that_of_transformers(service: Service, tmp_path: Path) -> None:
    write_tasks(tmp_path, choices=TASKS["graftwerk_choice"], documents=TASKS["graftwerk_rolling"])
    address = f"{service.url}/m/{MODEL}/v1/completions"
    arguments = f"model={MODEL},base_url={address},tokenizer_backend=remote,num_concurrent=4"
    ours = evaluate(tmp_path, "ours", "local-completions", arguments)
    theirs = evaluate(tmp_path, "theirs", "hf", f"pretrained={service.folder},dtype=float32")
    assert {task: len(rows) for task, rows in ours.items()} == TASKS
    assert {len(row) for row in ours["graftwerk_choice"]} == {4}
    for task in TASKS:
        for mine, their in zip(ours[task], theirs[task], strict=True):
            assert mine == pytest.approx(their, abs=1e-3)
