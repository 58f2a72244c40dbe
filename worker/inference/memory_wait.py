"""Jobs whose model does not fit next to those of running jobs: they wait at the front of their queue, not in the worker.

There a worker with enough memory can take them. The one that has refused a job takes none of those behind it: jobs for a model that
is loaded already would keep the memory taken for ever.
"""

from dataclasses import dataclass

from services.errors import GraftwerkError
from services.generate_engines import GenerateEngine
from services.jobs.status import WaitingFor
from services.kinds.compare import CompareRequest
from services.kinds.generate import GenerateRequest
from services.kinds.shared import JobRequest, ModelChoice
from services.models.store import ModelStore
from worker.inference.engine_choice import generating_key
from worker.inference.model_cache import ModelCache
from worker.inference.model_key import ModelKey, key_of


@dataclass(frozen=True, slots=True)
class Refused:
    """The last job that was refused, and what its model needs."""

    job_id: str
    key: ModelKey
    needed_bytes: int


class MemoryWait:
    """Decision about each job that a worker is about to start next to others."""

    def __init__(self, models: ModelCache, setting: GenerateEngine = "auto") -> None:
        """`setting` is that of the engine that generates."""
        self._models, self._setting = models, setting
        self._refused: Refused | None = None

    def check(self, job_id: str, request: JobRequest, store: ModelStore) -> WaitingFor | None:
        """Returns what the job waits for, None if its first model is loaded or can be."""
        choice = _first_choice(request)
        if choice is None:
            return None
        try:
            key = self._key(request, choice, store)
            needed_bytes = self._models.needed_bytes(key, store)
        except (GraftwerkError, OSError):
            return None  # it starts, and fails with that
        if self._models.fits(key, needed_bytes):
            return None
        self._refused = Refused(job_id, key, needed_bytes)
        busy, limit = self._models.busy_bytes, self._models.limit_bytes
        return WaitingFor(
            what="memory",
            message=f"{key.name} needs {needed_bytes} bytes of memory; models of running jobs take {busy} of {limit}.",
        )

    def _key(self, request: JobRequest, choice: ModelChoice, store: ModelStore) -> ModelKey:
        if isinstance(request, CompareRequest | GenerateRequest):
            return generating_key(choice, store, self._setting)
        return key_of(choice, store)

    def blocks(self, job_id: str) -> bool:
        """Returns True while this job, refused before, does not fit."""
        refused = self._refused
        if refused is None or refused.job_id != job_id:
            return False
        return not self._models.fits(refused.key, refused.needed_bytes)


def _first_choice(request: JobRequest) -> ModelChoice | None:
    """Returns the model that a job runs on first, None if it loads none."""
    if isinstance(request, CompareRequest):
        return request.variants[0]
    return request if isinstance(request, ModelChoice) else None
