"""Readers of headers on mutated and generated files: an answer or one of our errors, within the limits of a process.

FUZZ_CASES is the number of cases, 2,000 by default; `make fuzz` takes 20,000 with a new seed.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.isolation.limits import Limits
from services.isolation.process import IsolatedProcess, complete
from tests.fuzz.files import BASE_FILES, CASES

CASES_VARIABLE = "FUZZ_CASES"
IN_CI = 2000

LIMITS = Limits(cpu_seconds=2, memory_bytes=400 * 2**20, seconds=60)
"""Limits of one case; the address space of the process without any file is about 250 MiB."""

FOUND = [
    (
        "tokenizer.json",
        b'{"pre_tokenizer": {"type": [null]}, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
    ),
    (
        "tokenizer.json",
        b'{"normalizer": {"normalizers": 5}, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
    ),
]
"""Files that once ended in an exception."""

Read = Callable[[dict[str, bytes]], Any]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Read]:
    """A function that reads a folder of these files in a process with limits."""
    process = IsolatedProcess("tests.fuzz.reading", LIMITS)
    base, folder = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("case")
    for name, content in BASE_FILES.items():
        (base / name).write_bytes(content)

    def read_files(files: dict[str, bytes]) -> Any:
        for path in folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return complete(process.call({"folder": str(folder), "base": str(base)}))

    yield read_files
    process.stop()


def test_a_sound_model_is_answered(read: Read) -> None:
    """Each question that the cases ask has an answer for sound files: the property below is not empty."""
    assert read(dict(BASE_FILES)) == {"answers": 4}


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_what_was_found_is_answered_or_refused(name: str, content: bytes, read: Read) -> None:
    assert "escaped" not in read({name: content})


@pytest.mark.parametrize("name", CASES)
def test_readers_answer_or_refuse(name: str, read: Read) -> None:
    case = CASES[name]
    count = int(os.environ.get(CASES_VARIABLE, IN_CI))

    @settings(
        max_examples=-(-count // len(CASES)), deadline=None, database=None, derandomize=CASES_VARIABLE not in os.environ,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = data.draw(case.content)
        found = read({**case.others, case.name: content})
        assert "escaped" not in found, f"{content!r}\n{found['escaped']}"

    check()
