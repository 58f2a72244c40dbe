"""SECURITY.md names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_each_promise_is_tested_by_files_that_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    table = text.partition("| promise | tested by |")[2].partition("\n## ")[0]
    promises = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("|-")]
    assert len(promises) > 10
    for line in promises:
        named = re.findall(r"`(tests/[^`]+\.py)`", line)
        assert named, line
        assert all((ROOT / path).is_file() for path in named), line
