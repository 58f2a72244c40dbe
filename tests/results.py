"""Results of jobs as the API returns them."""

from typing import Any

from services.jobs.status import Job


def result_json(job: Job) -> dict[str, Any]:
    """Returns the result of a succeeded job as a JSON object."""
    assert job.result is not None, job.error
    result: dict[str, Any] = job.model_dump(mode="json")["result"]
    return result
