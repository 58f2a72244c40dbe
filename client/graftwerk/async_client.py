"""The Python client for coroutines: the methods of `Client`, awaited.

async with AsyncClient("http://127.0.0.1:8000") as client:
    handle = await client.merge(base="llama", adapters=["zh"], target="llama-zh")
    job = await handle.wait()
"""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Self, TypeVar

import anyio
import anyio.to_thread
import httpx

from graftwerk import calls
from graftwerk.async_http import AsyncHttpService
from graftwerk.async_job_group import AsyncJobGroup
from graftwerk.async_job_handle import AsyncJobHandle
from graftwerk.async_kind_methods import AsyncKindMethods
from graftwerk.async_service_methods import AsyncServiceMethods
from graftwerk.client import address, key
from graftwerk.errors import ClientError
from graftwerk.http import HttpService
from graftwerk.local_files import default_name
from graftwerk.model_results import ImportResult
from graftwerk.models import Job, JsonObject
from graftwerk.pull import PulledModel
from graftwerk.transfers import Transfers

T = TypeVar("T")


class AsyncClient(AsyncKindMethods, AsyncServiceMethods):
    """A service at a URL, for coroutines: the methods of `Client`, awaited; an asynchronous context manager.

    Uploads and downloads read and write local files and run in a thread of their own; cancelling the task ends them
    after the present block, and a repeated call continues them.

    Args:
        url: address of the service; `GRAFTWERK_URL` or http://127.0.0.1:8000 if None.
        api_key: bearer key; `GRAFTWERK_API_KEY` if None.
        transport: transport of httpx, for tests and for special networks.
        pause: replaces `anyio.sleep` between two attempts to reach the service.
        transfer_transport: transport of uploads and downloads.

    Raises:
        ApiError: from any method, if the service refuses the request.
        UnreachableError: from any method, if no Graftwerk service responds at the URL.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Callable[[float], Awaitable[None]] = anyio.sleep,
        transfer_transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._key, self._transfer_transport = key(api_key), transfer_transport
        self._service = AsyncHttpService(address(url), self._key, transport=transport, pause=pause)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._service.close()

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._service.url

    # ---- jobs -----------------------------------------------------------------------------------------

    async def submit(self, request: JsonObject) -> AsyncJobHandle:
        """Submits a request of any kind; its fields are not checked before the service reads them.

        Args:
            request: the request with its `kind`, as the API takes it.

        Returns:
            The handle of the queued job.

        Raises:
            ApiError: the request cannot succeed, or the queue is full.
        """
        job = await self._service.call(calls.submit(request))
        return AsyncJobHandle(self._service, job.id, job)

    async def put(self, job_id: str, request: JsonObject) -> AsyncJobHandle:
        """Submits a request under an id of the caller; submitted again it is the same job.

        Args:
            job_id: a new UUID.
            request: the request with its `kind`, as the API takes it.

        Raises:
            ApiError: the request cannot succeed, or the id is that of another request (`idempotency_conflict`).
        """
        job = await self._service.call(calls.put(job_id, request))
        return AsyncJobHandle(self._service, job.id, job)

    async def pause(self, seconds: float) -> None:
        """Waits before another attempt, as the client itself does."""
        await self._service.pause(seconds)

    async def plan(self, request: JsonObject) -> JsonObject:
        """Returns the plan of a request without queueing it: inputs, output, memory, disk, warnings.

        Args:
            request: the request with its `kind`, as the API takes it.

        Raises:
            ApiError: the request cannot succeed.
        """
        return await self._service.call(calls.plan(request))

    def job(self, job_id: str) -> AsyncJobHandle:
        """Returns the handle of a job; nothing is requested before its first use."""
        return AsyncJobHandle(self._service, job_id)

    async def jobs(
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
        return await self._service.call(calls.jobs(kind=kind, status=status, model=model, limit=limit))

    def group(self, jobs: Iterable[Job], *, with_new: bool = False) -> AsyncJobGroup:
        """Returns jobs that are followed together: `changes()` yields each at each change until all have ended.

        Args:
            jobs: the jobs, such as those that `jobs` returns.
            with_new: adds jobs that are submitted meanwhile, also by others.
        """
        return AsyncJobGroup(self._service, jobs, with_new=with_new)

    # ---- transfers -----------------------------------------------------------------------------------

    async def push(
        self, source: str | Path, name: str | None = None, *, progress: bool = False
    ) -> AsyncJobHandle[ImportResult]:
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
        ids = await self.upload(source, target, progress=progress)
        return await self.import_(source={"upload": ids}, target=target)

    async def upload(self, source: str | Path, name: str, *, progress: bool = False) -> list[str]:
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
        return await self._transfer(lambda transfers: transfers.upload(Path(source), name, progress=progress))

    async def pull(self, name: str, into: str | Path = ".", *, progress: bool = False) -> PulledModel:
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
        return await self._transfer(lambda transfers: transfers.pull(name, Path(into), progress=progress))

    async def _transfer(self, work: Callable[[Transfers], T]) -> T:
        stopped = Event()

        def check() -> None:
            if stopped.is_set():
                raise ClientError("The transfer was stopped.", "A repeated call continues it.")

        def run() -> T:
            with closing(HttpService(self.url, self._key, transport=self._transfer_transport)) as service:
                return work(Transfers(service, check))

        try:
            return await anyio.to_thread.run_sync(run, abandon_on_cancel=True)
        finally:
            stopped.set()
