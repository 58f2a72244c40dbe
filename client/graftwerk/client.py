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
from graftwerk.http import HttpService
from graftwerk.job_group import JobGroup
from graftwerk.job_handle import JobHandle
from graftwerk.kind_methods import KindMethods
from graftwerk.local_files import default_name
from graftwerk.model_results import ImportResult
from graftwerk.models import Job, JsonObject
from graftwerk.pull import PulledModel
from graftwerk.service_methods import ServiceMethods
from graftwerk.transfers import Transfers


def address(url: str | None) -> str:
    """Returns the URL, or that of the environment, or that of a service on this machine."""
    return url or os.environ.get("GRAFTWERK_URL") or DEFAULT_URL


def key(api_key: str | None) -> str | None:
    """Returns the API key, or that of the environment."""
    return api_key or os.environ.get("GRAFTWERK_API_KEY")


class Client(KindMethods, ServiceMethods):
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

    # ---- transfers -----------------------------------------------------------------------------------

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
