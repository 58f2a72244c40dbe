"""Hostile folders are refused within bounds of time and memory, and large sound ones are read."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile_files import HOSTILE, LARGE

SECONDS = 5
"""Longest time of the processor for one refusal; it is below 1 on a calm machine (docs/reliability.md)."""

MEMORY_BYTES = 200 * 10**6

Reader = Any


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    """A process that reads folders and says what that took."""
    command = [sys.executable, "-m", "tests.measured_reader"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def read(what: str, folder: Path) -> dict[str, Any]:
            process.stdin.write(f"{what} {folder}\n")
            process.stdin.flush()
            found: dict[str, Any] = json.loads(process.stdout.readline())
            return found

        yield read
        process.stdin.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_within_its_bounds(name: str, tmp_path: Path, reader: Reader) -> None:
    make, phrase = HOSTILE[name]
    make(tmp_path)
    found = reader("summary", tmp_path)
    print(f"HOSTILE {name}: {found['seconds']:.2f} s, {found['bytes'] / 10**6:.0f} MB")  # noqa: T201
    assert found["answer"]["problems"], found
    assert phrase in found["answer"]["problems"][0], found
    assert found["seconds"] < SECONDS
    assert found["bytes"] < MEMORY_BYTES


@pytest.mark.parametrize("name", LARGE)
def test_no_limit_refuses_a_large_sound_file(name: str, tmp_path: Path, reader: Reader) -> None:
    what, make, expected = LARGE[name]
    make(tmp_path)
    found = reader(what, tmp_path)
    print(f"LARGE {name}: {found['seconds']:.2f} s, {found['bytes'] / 10**6:.0f} MB")  # noqa: T201
    if what == "summary":
        assert found["answer"]["problems"] == [], found
        assert found["answer"]["vocabulary_size"] == expected
    else:
        assert found["answer"] == expected
