"""Models on the volume and their files."""

from pathlib import Path
from typing import IO, cast

from flask import Response, request, send_file
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field
from werkzeug.exceptions import NotFound, PreconditionFailed
from werkzeug.wsgi import FileWrapper

from api.errors import problems
from api.openapi import FILE, SECURITY, TAR
from api.responses import ModelList, json_response
from api.state import state
from services.bounded_text import listed
from services.errors import ModelInUse, ModelNotFound
from services.jobs.status import JobStatus
from services.kinds.model_summary import ModelSummary
from services.models.archive import Archive, is_inside
from services.models.dependents import MadeFrom, adapters_of, made_from
from services.names import MODEL_NAME_PATTERN, is_model_name

CHUNK_BYTES = 1024 * 1024

TEXT_TYPES = {".json": "application/json", ".txt": "text/plain", ".md": "text/plain"}
"""Media types by suffix; all other files are octets, because a browser must never run a file of the volume."""

api = APIBlueprint(
    "models",
    __name__,
    url_prefix="/api",
    abp_tags=[Tag(name="models")],
    abp_security=SECURITY,
    abp_responses=problems(400, 401, 403, 429, 500),
)


class ModelPath(BaseModel):
    """Path parameter `name`."""

    name: str = Field(json_schema_extra={"pattern": MODEL_NAME_PATTERN})


class FilePath(ModelPath):
    """Path parameters `name` and `file`."""

    file: str = Field(description="Path of the file in the model's folder.")


@api.get("/models", responses={200: ModelList, **problems(503)})
def models() -> Response:
    """List the models on the volume."""
    return json_response(ModelList(models=state().models.models()))


@api.get("/models/<name>", responses={200: ModelSummary, **problems(404, 503)})
def model(path: ModelPath) -> Response:
    """Get a model.

    The summary is read from its files: layout, parameters, vocabulary, known digests, lineage, problems.
    """
    existing(path.name)
    return json_response(state().models.describe(path.name))


class DependentJob(BaseModel):
    """An unfinished job that reads or makes a model."""

    id: str
    kind: str
    status: JobStatus


class Dependents(BaseModel):
    """Dependents of a model; while a job is unfinished, the model cannot be deleted."""

    name: str
    models: list[MadeFrom] = Field(
        description="Models made from it: they stay complete, and cannot be checked against it or made again without it."
    )
    adapters: list[str] = Field(
        description="Adapters whose recorded base it is: they cannot be used without it."
    )
    jobs: list[DependentJob] = Field(description="Unfinished jobs that read or make it, the oldest first.")


@api.get("/models/<name>/dependents", responses={200: Dependents, **problems(404, 503)})
def dependents(path: ModelPath) -> Response:
    """Get the dependents of a model: models made from it, adapters of it, unfinished jobs."""
    existing(path.name)
    found = state().models.models()
    own = next((model for model in found if model.name == path.name), None)
    if own is None:  # it was deleted a moment ago
        raise state().store.not_found(path.name)
    jobs = state().queue.unfinished(path.name)
    return json_response(
        Dependents(
            name=path.name,
            models=list(made_from(own, found)),
            adapters=list(adapters_of(own, found)),
            jobs=[DependentJob(id=job.id, kind=job.kind, status=job.status) for job in jobs],
        )
    )


@api.delete("/models/<name>", responses={204: None, **problems(404, 409, 503)})
def delete(path: ModelPath) -> Response:
    """Delete a model and its files.

    Refused with 409 while a queued or running job reads or makes it.
    """
    existing(path.name)
    users = state().queue.using(path.name)
    if users:
        raise ModelInUse(
            f"The model {path.name!r} is used by {len(users)} unfinished job(s): {listed(users)}.",
            "Wait until they have ended, or cancel them.",
        )
    state().store.delete(path.name)
    return Response(status=204)


@api.get("/models/<name>/files/<path:file>", responses={200: FILE, 206: FILE, **problems(404, 416)})
def download(path: FilePath) -> Response:
    """Download one file.

    Ranges and conditional requests (`ETag`, `Last-Modified`) are supported, so that a download can be resumed.
    """
    folder = existing(path.name)
    found = folder / path.file
    missing = NotFound(f"The model {path.name!r} has no file {path.file!r}.")
    if ".." in found.parts or not is_inside(found, folder):
        raise missing
    mimetype = TEXT_TYPES.get(found.suffix, "application/octet-stream")
    try:
        return send_file(found, mimetype, as_attachment=True, download_name=found.name, conditional=True)
    except FileNotFoundError as error:  # it was deleted a moment ago
        raise missing from error


@api.get("/models/<name>/archive", responses={200: TAR, 206: TAR, **problems(404, 412, 416)})
def archive(path: ModelPath) -> Response:
    """Download all files of a model as one tar archive, in a folder with its name.

    Its length is known, and ranges are supported: `ETag` changes with the files, so that a download that continues with
    `If-Range` or `If-Match` never mixes two versions. A download whose files change meanwhile breaks off.
    """
    try:
        content = Archive(existing(path.name), path.name)
    except FileNotFoundError as error:  # it was deleted a moment ago
        raise state().store.not_found(path.name) from error
    # werkzeug ignores If-Match next to a range
    if request.if_match and not request.if_match.contains(content.etag):
        raise PreconditionFailed("The model has changed since the version in If-Match.")
    response = Response(
        FileWrapper(cast(IO[bytes], content), CHUNK_BYTES),
        mimetype="application/x-tar",
        direct_passthrough=True,
    )
    response.headers["Content-Disposition"] = f'attachment; filename="{path.name}.tar"'
    response.content_length = content.size_bytes
    response.set_etag(content.etag)
    response.make_conditional(request, accept_ranges=True, complete_length=content.size_bytes)
    return response


def existing(name: str) -> Path:
    """Returns the folder of the model in a path; raises ModelNotFound also for a name that no model can have."""
    if not is_model_name(name):
        raise ModelNotFound(f"There is no model {name!r}.", "GET /api/models lists the models.")
    return state().store.path(name)
