"""Types of the client as mypy sees them in a program that uses it."""

import os
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[2] / "client"
"""Folder of the package: mypy does not follow the hook of an editable installation."""

PROGRAM = """
from typing import assert_type

from graftwerk import AsyncClient, AsyncJobHandle, Client, Job, JobHandle, ModelSummary
from graftwerk.inference_results import CompareResult, GenerateResult
from graftwerk.model_results import ImportResult, MergeResult
from graftwerk.service_models import System


def program(client: Client) -> None:
    handle = client.merge(base="llama", adapters=["zh", {"name": "alpaca", "scale": 0.5}], target="both")
    assert_type(handle, JobHandle[MergeResult])
    assert_type(handle.wait().result, MergeResult | None)
    assert_type(client.generate(model="both", prompt="Hello").wait().result, GenerateResult | None)
    assert_type(client.push("folder").wait().result, ImportResult | None)
    assert_type(client.models(), list[ModelSummary])
    assert_type(client.system(), System)


async def coroutine(client: AsyncClient) -> None:
    handle = await client.merge(base="llama", adapters=["zh"], target="both")
    assert_type(handle, AsyncJobHandle[MergeResult])
    assert_type(await handle.wait(progress=True), Job[MergeResult])
    variants: list = []
    assert_type((await (await client.compare(variants=variants, prompt="p")).wait()).result, CompareResult | None)
"""

MISTAKES = {
    'client.merge(base="llama", target="both")': 'Missing named argument "adapters"',
    'client.merge(base="llama", adapters=[], target="b", rounding="twice")': 'Argument "rounding"',
    'client.generate(model="m", sampling={"temprature": 0})': 'Extra key "temprature"',
    'client.merge(base="a", adapters=[], target="b").wait().result.tensors': 'Item "None"',
}


def mypy(program: str, folder: Path) -> tuple[int, str]:
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", folder / "cache", file]
    environment = {**os.environ, "MYPYPATH": str(CLIENT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout


def test_results_and_handles_have_the_types_of_their_kind(tmp_path: Path) -> None:
    assert mypy(PROGRAM, tmp_path) == (0, "Success: no issues found in 1 source file\n")


def test_mistakes_in_requests_and_results_are_found(tmp_path: Path) -> None:
    lines = "".join(f"    {mistake}\n" for mistake in MISTAKES)
    status, found = mypy(
        f"from graftwerk import Client\n\ndef program(client: Client) -> None:\n{lines}", tmp_path
    )
    assert status == 1
    for number, message in enumerate(MISTAKES.values(), start=4):
        assert any(line.split(":")[1] == str(number) and message in line for line in found.splitlines()), (
            found
        )
