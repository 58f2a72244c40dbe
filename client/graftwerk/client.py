"""The Python client: one method per kind of job, access to models and jobs.

with Client("http://127.0.0.1:8000") as client:
    job = client.convert(source="llama", target="llama-hf").wait()
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import httpx

from graftwerk import calls
from graftwerk.completion import DEFAULT_URL
from graftwerk.errors import ApiError, UnreachableError
from graftwerk.http import HttpService
from graftwerk.job_group import JobGroup
from graftwerk.job_handle import JobHandle
from graftwerk.kind_methods import KindMethods
from graftwerk.local_files import default_name
from graftwerk.model_results import ImportResult, ModelSummary
from graftwerk.models import Job, JsonObject
from graftwerk.pull import PulledModel
from graftwerk.service_models import (
    Dependents,
    HubModel,
    HubRepository,
    IncomingList,
    System,
    TemplateDescription,
)
from graftwerk.transfers import Transfers


def address(url: str | None) -> str:
    """Returns the URL, or that of the environment, or that of a service on this machine."""
    return url or os.environ.get("GRAFTWERK_URL") or DEFAULT_URL


def key(api_key: str | None) -> str | None:
    """Returns the API key, or that of the environment."""
    return api_key or os.environ.get("GRAFTWERK_API_KEY")


class Client(KindMethods):
    """A service at a URL; a context manager that closes its connections. Threads may share it.

    Args:
        url: address of the service; `GRAFTWERK_URL` or http://127.0.0.1:8000 if None.
        api_key: bearer key; `GRAFTWERK_API_KEY` if None.
        transport: transport of httpx, for tests and for special networks.
        pause: replaces `time.sleep` between two attempts to reach the service.

    Raises:
        ApiError: from any method, if the service refuses the request.
        UnreachableError: from any method, if no Graftwerk service responds at the URL.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._service = HttpService(address(url), key(api_key), transport=transport, pause=pause)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._service.close()

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._service.url

    # ---- jobs -----------------------------------------------------------------------------------------

    def submit(self, request: JsonObject) -> JobHandle:
        """Submits a request of any kind; its fields are not checked before the service reads them.

        Args:
            request: the request with its `kind`, as the API takes it.

        Returns:
            The handle of the queued job.

        Raises:
            ApiError: the request cannot succeed, or the queue is full.
        """
        job = self._service.call(calls.submit(request))
        return JobHandle(self._service, job.id, job)

    def put(self, job_id: str, request: JsonObject) -> JobHandle:
        """Submits a request under an id of the caller; submitted again it is the same job.

        Args:
            job_id: a new UUID.
            request: the request with its `kind`, as the API takes it.

        Raises:
            ApiError: the request cannot succeed, or the id is that of another request (`idempotency_conflict`).
        """
        job = self._service.call(calls.put(job_id, request))
        return JobHandle(self._service, job.id, job)

    def pause(self, seconds: float) -> None:
        """Waits before another attempt, as the client itself does."""
        self._service.pause(seconds)

    def plan(self, request: JsonObject) -> JsonObject:
        """Returns the plan of a request without queueing it: inputs, output, memory, disk, warnings.

        Args:
            request: the request with its `kind`, as the API takes it.

        Raises:
            ApiError: the request cannot succeed.
        """
        return self._service.call(calls.plan(request))

    def job(self, job_id: str) -> JobHandle:
        """Returns the handle of a job; nothing is requested before its first use."""
        return JobHandle(self._service, job_id)

    def jobs(
        self,
        *,
        kind: str | None = None,
        status: str | None = None,
        model: str | None = None,
        limit: int = 20,
    ) -> list[Job]:
        """Returns the newest jobs, newest first.

        Args:
            kind: only jobs of this kind, such as `merge`.
            status: only jobs with this status.
            model: only jobs that read or make this model.
            limit: number of jobs at most, up to 1,000.
        """
        return self._service.call(calls.jobs(kind=kind, status=status, model=model, limit=limit))

    def group(self, jobs: Iterable[Job], *, with_new: bool = False) -> JobGroup:
        """Returns jobs that are followed together: `changes()` yields each at each change until all have ended.

        Args:
            jobs: the jobs, such as those that `jobs` returns.
            with_new: adds jobs that are submitted meanwhile, also by others.
        """
        return JobGroup(self._service, jobs, with_new=with_new)

    # ---- models ---------------------------------------------------------------------------------------

    def models(self) -> list[ModelSummary]:
        """Returns the summaries of all models on the volume."""
        return self._service.call(calls.models())

    def model(self, name: str) -> ModelSummary:
        """Returns the summary of one model, with its files, lineage and problems.

        Raises:
            ApiError: there is no such model (`model_not_found`).
        """
        return self._service.call(calls.model(name))

    def delete_model(self, name: str) -> None:
        """Deletes a model from the volume.

        Raises:
            ApiError: there is no such model, or a job needs it (`model_in_use`).
        """
        self._service.call(calls.delete_model(name))

    def dependents(self, name: str) -> Dependents:
        """Returns the dependents of a model: models made from it, adapters of it, and unfinished jobs.

        Raises:
            ApiError: there is no such model (`model_not_found`).
        """
        return self._service.call(calls.dependents(name))

    def incoming(self) -> IncomingList:
        """Returns the folders, archives and files below `incoming/` of the volume, which imports can take."""
        return self._service.call(calls.incoming())

    def push(
        self, source: str | Path, name: str | None = None, *, progress: bool = False
    ) -> JobHandle[ImportResult]:
        """Uploads a local folder, file or zip archive and submits its import.

        Chunks that a broken connection lost are sent again; a repeated call continues where an earlier one was killed.

        Args:
            source: the folder, file or archive.
            name: name of the new model; by default that of the folder, or of the file without its suffix.
            progress: show the progress of the upload on stderr.

        Returns:
            The handle of the queued `import`.

        Raises:
            UsageError: there are no files, or their name cannot name a model.
        """
        target = name or default_name(str(source))
        return self.import_(source={"upload": self.upload(source, target, progress=progress)}, target=target)

    def upload(self, source: str | Path, name: str, *, progress: bool = False) -> list[str]:
        """Uploads the files of a local folder, or a local file, for an import.

        Args:
            source: the folder or file.
            name: name of the new model, for the display of the progress.
            progress: show the progress on stderr.

        Returns:
            The ids of the uploads: `import_(source={"upload": ids}, …)` makes a model of them.

        Raises:
            UsageError: there are no files.
        """
        return Transfers(self._service).upload(Path(source), name, progress=progress)

    def pull(self, name: str, into: str | Path = ".", *, progress: bool = False) -> PulledModel:
        """Downloads a model into the folder `into/name`, verified against its manifest.

        A broken download is continued; a repeated call continues where an earlier one was killed.

        Args:
            name: name of the model.
            into: local folder.
            progress: show the progress on stderr.

        Returns:
            The new folder, and the names of the files that were verified by their digests.

        Raises:
            UsageError: something of that name is in `into` already.
            ClientError: the model changed meanwhile, or a digest differs.
        """
        return Transfers(self._service).pull(name, Path(into), progress=progress)

    # ---- the Hub and the system -----------------------------------------------------------------------

    def hub_search(self, search: str, *, limit: int = 20) -> list[HubModel]:
        """Searches the Hub for models, most downloaded first.

        Args:
            search: a part of the id, such as `qwen3`.
            limit: number of models at most, up to 100.

        Raises:
            ApiError: the service does not use the Hub (`hub_disabled`) or cannot reach it (`hub_unreachable`).
        """
        return self._service.call(calls.hub_search(search, limit))

    def hub_model(self, repository: str, *, revision: str | None = None) -> HubRepository:
        """Returns a repository of the Hub: its commit, its files, and those that an import fetches.

        Args:
            repository: the id, `org/name`.
            revision: a branch, a tag or a commit; the main branch if None.

        Raises:
            ApiError: there is no such repository, or it is gated (`hub_gated`).
        """
        return self._service.call(calls.hub_model(repository, revision))

    def templates(self) -> list[TemplateDescription]:
        """Returns the prompt templates, the model's own first, each with an example."""
        return self._service.call(calls.templates())

    def system(self) -> System:
        """Returns workers, devices, memory and queues of the service."""
        return self._service.call(calls.system())

    def is_ready(self) -> bool:
        """Returns True if Redis, the volume and a worker of each queue respond."""
        try:
            self._service.call(calls.readiness())
        except (ApiError, UnreachableError):
            return False
        return True
