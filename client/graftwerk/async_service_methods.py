"""Methods of the asynchronous client for models, the Hub and the service itself."""

from graftwerk import calls
from graftwerk.async_http import AsyncHttpService
from graftwerk.errors import ApiError, UnreachableError
from graftwerk.model_results import ModelSummary
from graftwerk.service_models import (
    Dependents,
    HubModel,
    HubRepository,
    IncomingList,
    System,
    TemplateDescription,
)


class AsyncServiceMethods:
    """Reading and deleting of models, and the state of the service."""

    _service: AsyncHttpService

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
