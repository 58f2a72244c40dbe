"""docs/families.md lists the families and dense types of the code."""

import re
from pathlib import Path

from services.architectures.dense_types import DENSE_TYPES
from services.architectures.families import FAMILIES

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")


def test_the_table_has_a_row_for_every_model_type() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| `(\w+)` \| yes \| (yes|no) \| `(\w+)` \|$", PAGE, re.MULTILINE
    )
    assert rows == [
        (model_type, family.title, family.architecture, "yes" if family.writes_meta else "no", family.gguf)
        for model_type, family in FAMILIES.items()
    ]


def test_every_dense_type_is_listed() -> None:
    paragraph = PAGE.split("## Dense types without a family")[1].split("GPT-2's weights")[0]
    assert re.findall(r"`(\w+)`", paragraph) == sorted(DENSE_TYPES)
