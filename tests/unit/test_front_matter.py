"""Metadata of model cards: read, and left out where it would take long."""

import time
from pathlib import Path

import pytest

from services.files.front_matter import front_matter

BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9)
)
LONG = "".join(f"k{number}: [1]\n" for number in range(20_000))


def test_metadata_of_a_card_is_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\nbase_model: org/name\n---\n# Title\n")
    assert front_matter(tmp_path) == {"license": "mit", "base_model": "org/name"}


@pytest.mark.parametrize("metadata", [BOMB, LONG, "a: [", "a: b: c"])
def test_metadata_that_takes_long_or_is_damaged_is_left_out(tmp_path: Path, metadata: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{metadata}---\n# Title\n")
    began = time.process_time()
    assert front_matter(tmp_path) == {}
    assert time.process_time() - began < 1, "the merged mappings would have 100 million keys"
