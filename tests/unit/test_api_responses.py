"""Jobs as the API shows them."""

from datetime import UTC, datetime

import pytest

from api.responses import JobResponse
from services.jobs.status import Job


@pytest.mark.parametrize(
    ("kind", "warnings"),
    [("merge", ["No merge worker is alive. The job waits until one starts."]), ("transmute", [])],
    ids=["known", "of another version"],
)
def test_a_job_of_an_unknown_kind_is_shown_without_a_warning(kind: str, warnings: list[str]) -> None:
    job = Job.model_validate({
        "id": "j", "kind": kind, "status": "queued", "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "started_at": None, "finished_at": None, "after": [], "queue_position": 0, "progress": None,
        "request": {"kind": kind}, "result": None, "error": None, "metadata": {},
    })  # fmt: skip
    assert JobResponse.of(job, set()).warnings == warnings
