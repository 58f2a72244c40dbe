"""The Hub as imports see it: search, and the files of a repository."""

from datetime import datetime

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from huggingface_hub.hf_api import ModelInfo
from pydantic import BaseModel, Field, ValidationError

from api.errors import InvalidFields, Problem, problem_of_error, problems
from api.jobs import Query
from api.openapi import SECURITY
from api.responses import json_response
from api.state import state
from services.kinds.import_ import HubSource, Revision
from services.models.hub_selection import Listing, listing

api = APIBlueprint(
    "hub",
    __name__,
    url_prefix="/api/hub",
    abp_tags=[Tag(name="hub")],
    abp_security=SECURITY,
    abp_responses=problems(400, 401, 403, 422, 429, 500, 503),
)


class SearchQuery(Query):
    """Query parameters of a search."""

    search: str = Field(min_length=1, max_length=200, description="Part of an id, such as `qwen3`.")
    limit: int = Field(default=20, ge=1, le=100)


class RepositoryPath(BaseModel):
    """Path parameters `org` and `name`: the two halves of an id."""

    org: str
    name: str


class RevisionQuery(Query):
    """Query parameter `revision` of a repository."""

    revision: Revision | None = Field(default=None, description="A branch, a tag or a commit.")


class HubModel(BaseModel):
    """A repository that a search has found; null where the Hub does not say."""

    id: str
    downloads: int | None
    likes: int | None
    gated: bool
    private: bool
    library: str | None
    task: str | None
    modified_at: datetime | None

    @classmethod
    def of(cls, info: ModelInfo) -> "HubModel":
        """Returns the model for an entry of the Hub's list."""
        return cls(
            id=info.id, downloads=info.downloads, likes=info.likes, gated=bool(info.gated), private=bool(info.private),
            library=info.library_name, task=info.pipeline_tag, modified_at=info.last_modified,
        )  # fmt: skip


class HubModelList(BaseModel):
    """Repositories, most downloaded first."""

    models: list[HubModel]


class OfferedFile(BaseModel):
    """A file of a repository; `selected` is true if an import without `files` fetches it."""

    path: str
    size_bytes: int
    selected: bool


class HubRepository(BaseModel):
    """A repository at one commit."""

    id: str
    revision: str | None
    commit: str
    gated: bool
    private: bool
    files: list[OfferedFile]
    size_bytes: int = Field(description="Bytes of all files.")
    selected_bytes: int = Field(description="Bytes of the selected files.")
    problem: Problem | None = Field(description="The reason why an import without `files` would be refused.")

    @classmethod
    def of(cls, listing: Listing) -> "HubRepository":
        """Returns the model for a listing."""
        repository, selected = listing.repository, {file.path for file in listing.selected}
        files = [
            OfferedFile(path=file.path, size_bytes=file.size_bytes, selected=file.path in selected)
            for file in repository.files
        ]
        return cls(
            id=repository.name, revision=repository.revision, commit=repository.commit, gated=repository.gated,
            private=repository.private, files=files, size_bytes=sum(file.size_bytes for file in files),
            selected_bytes=sum(file.size_bytes for file in listing.selected),
            problem=None if listing.refusal is None else problem_of_error(listing.refusal),
        )  # fmt: skip


@api.get("/models", responses={200: HubModelList})
def search(query: SearchQuery) -> Response:
    """Search the Hub for models by a part of their id."""
    found = state().hub.search(query.search, query.limit)
    return json_response(HubModelList(models=[HubModel.of(info) for info in found]))


@api.get("/models/<org>/<name>", responses={200: HubRepository, **problems(404)})
def repository(path: RepositoryPath, query: RevisionQuery) -> Response:
    """Get a repository of the Hub: its commit, its files, and those that an import would fetch."""
    try:
        source = HubSource(hub=f"{path.org}/{path.name}", revision=query.revision)
    except ValidationError as error:
        raise InvalidFields.of(error) from error
    return json_response(HubRepository.of(listing(state().hub, source)))
