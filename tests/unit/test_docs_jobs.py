"""docs/jobs has a page for every kind, and its index has the queue of each."""

import re
from pathlib import Path

import pytest

from services.kinds import KINDS
from services.kinds.shared import JobRequest

JOBS = Path(__file__).parents[2] / "docs" / "jobs"


def test_the_index_has_every_kind_with_its_queue() -> None:
    rows = re.findall(
        r"^\| \[`([\w-]+)`\]\(([\w-]+)\.md\) \| .+ \| `(\w+)` \|$",
        (JOBS / "index.md").read_text("utf-8"),
        re.M,
    )
    assert {kind: queue for kind, _, queue in rows} == {kind: row.queue for kind, row in KINDS.items()}
    assert all(kind == page for kind, page, _ in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_has_every_field_of_its_request(kind: str) -> None:
    page = (JOBS / f"{kind}.md").read_text("utf-8")
    fields = set(KINDS[kind].request.model_fields) - set(JobRequest.model_fields) - {"kind"}
    missing = [field for field in sorted(fields) if f"`{field}`" not in page]
    assert missing == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_of_a_kind_has_every_field_of_its_result(kind: str) -> None:
    page = (JOBS / f"{kind}.md").read_text("utf-8")
    missing = [field for field in sorted(KINDS[kind].result.model_fields) if f"`{field}`" not in page]
    assert missing == []
