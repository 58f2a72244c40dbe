"""The Python client for coroutines: the methods of `Client`, awaited.

async with AsyncClient("http://127.0.0.1:8000") as client:
    handle = await client.merge(base="llama", adapters=["zh"], target="llama-zh")
    job = await handle.wait()
"""

from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Self, TypeVar

import anyio
import anyio.to_thread
import httpx

from graftwerk import calls
from graftwerk.async_http import AsyncHttpService
from graftwerk.async_job_handle import AsyncJobHandle
from graftwerk.async_kind_methods import AsyncKindMethods
from graftwerk.client import address, key
from graftwerk.errors import ApiError, ClientError, UnreachableError
from graftwerk.http import HttpService
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

T = TypeVar("T")


class AsyncClient(AsyncKindMethods):
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

    # ---- models ---------------------------------------------------------------------------------------

    async def models(self) -> list[ModelSummary]:
        """Returns the summaries of all models on the volume."""
        return await self._service.call(calls.models())

    async def model(self, name: str) -> ModelSummary:
        """Returns the summary of one model, with its files, lineage and problems.

        Raises:
            ApiError: there is no such model (`model_not_found`).
        """
        return await self._service.call(calls.model(name))

    async def delete_model(self, name: str) -> None:
        """Deletes a model from the volume.

        Raises:
            ApiError: there is no such model, or a job needs it (`model_in_use`).
        """
        await self._service.call(calls.delete_model(name))

    async def dependents(self, name: str) -> Dependents:
        """Returns the dependents of a model: models made from it, adapters of it, and unfinished jobs.

        Raises:
            ApiError: there is no such model (`model_not_found`).
        """
        return await self._service.call(calls.dependents(name))

    async def incoming(self) -> IncomingList:
        """Returns the folders, archives and files below `incoming/` of the volume, which imports can take."""
        return await self._service.call(calls.incoming())

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

    # ---- the Hub and the system -----------------------------------------------------------------------

    async def hub_search(self, search: str, *, limit: int = 20) -> list[HubModel]:
        """Searches the Hub for models, most downloaded first.

        Args:
            search: a part of the id, such as `qwen3`.
            limit: number of models at most, up to 100.

        Raises:
            ApiError: the service does not use the Hub (`hub_disabled`) or cannot reach it (`hub_unreachable`).
        """
        return await self._service.call(calls.hub_search(search, limit))

    async def hub_model(self, repository: str, *, revision: str | None = None) -> HubRepository:
        """Returns a repository of the Hub: its commit, its files, and those that an import fetches.

        Args:
            repository: the id, `org/name`.
            revision: a branch, a tag or a commit; the main branch if None.

        Raises:
            ApiError: there is no such repository, or it is gated (`hub_gated`).
        """
        return await self._service.call(calls.hub_model(repository, revision))

    async def templates(self) -> list[TemplateDescription]:
        """Returns the prompt templates, the model's own first, each with an example."""
        return await self._service.call(calls.templates())

    async def system(self) -> System:
        """Returns workers, devices, memory and queues of the service."""
        return await self._service.call(calls.system())

    async def is_ready(self) -> bool:
        """Returns True if Redis, the volume and a worker of each queue respond."""
        try:
            await self._service.call(calls.readiness())
        except (ApiError, UnreachableError):
            return False
        return True

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
