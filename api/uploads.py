"""Uploads by the tus protocol, version 1.0: creation, creation-with-upload, expiration, checksum, termination.

https://tus.io/protocols/resumable-upload. The state is on the volume, so that each process can serve each request.
"""

from datetime import UTC, datetime

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel, Field
from werkzeug.exceptions import MethodNotAllowed, PreconditionFailed, UnsupportedMediaType
from werkzeug.http import http_date

from api.errors import problems
from api.openapi import OFFSET_BODY, SECURITY, UPLOADED
from api.responses import json_response
from api.state import state
from api.upload_body import receive
from api.upload_headers import (
    EXTENSIONS,
    MEDIA_TYPE,
    VERSION,
    CreationHeader,
    PatchHeader,
    ProtocolHeader,
    announced,
    byte_count,
    parse_checksum,
    refuse_other_extensions,
)
from services.bounded_text import listed
from services.errors import UploadInUse
from services.models.upload_file import CHECKSUMS, Upload, UploadLimits
from services.timestamps import utc_text

api = APIBlueprint(
    "uploads",
    __name__,
    url_prefix="/api",
    abp_tags=[Tag(name="uploads")],
    abp_security=SECURITY,
    abp_responses=problems(400, 401, 403, 412, 429, 500),
)


class UploadPath(BaseModel):
    """Path parameter `upload_id`."""

    upload_id: str


class UploadState(BaseModel):
    """An upload: the file that it will be, and how much of it has arrived."""

    id: str
    filename: str | None = Field(description="Path in the model that an import makes of it.")
    sha256: str | None
    size_bytes: int
    received_bytes: int
    expires_at: str


@api.before_request
def check_version() -> None:
    """Refuses another version of the protocol; GET and OPTIONS need none."""
    if request.method in ("OPTIONS", "GET") or request.headers.get("Tus-Resumable") == VERSION:
        return
    raise PreconditionFailed(
        f"The header Tus-Resumable is {request.headers.get('Tus-Resumable')!r}; this service speaks {VERSION}."
    )


@api.after_request
def add_version(response: Response) -> Response:
    """Adds the version of the protocol to every response."""
    response.headers["Tus-Resumable"] = response.headers["Tus-Version"] = VERSION
    return response


@api.route("/uploads", methods=["OPTIONS"], provide_automatic_options=False)
@api.route("/uploads/<upload_id>", methods=["OPTIONS"], provide_automatic_options=False)
def options(upload_id: str = "") -> Response:
    """Returns what this server offers."""
    response = Response(status=204)
    response.headers["Tus-Extension"] = EXTENSIONS
    response.headers["Tus-Checksum-Algorithm"] = ",".join(CHECKSUMS)
    response.headers["Tus-Max-Size"] = str(state().settings.upload_limit_bytes)
    return response


@api.post(
    "/uploads",
    openapi_extensions=OFFSET_BODY,
    responses={201: UPLOADED, **problems(400, 413, 415, 422, 460, 503, 507)},
    provide_automatic_options=False,
)
def create(header: CreationHeader) -> Response:
    """Create an upload.

    The response has its address in `Location`. A body with the type `application/offset+octet-stream` is its first bytes.
    """
    refuse_other_extensions()
    uploads = state().store.uploads
    upload = uploads.create(announced(header), _limits())
    if request.mimetype == MEDIA_TYPE:
        try:
            upload = _append(upload.id, 0, header.upload_checksum)
        except BaseException:
            uploads.delete(upload.id)  # its client never learns the address
            raise
    response = Response(status=201, headers=_progress(upload))
    response.headers["Location"] = f"/api/uploads/{upload.id}"
    return response


@api.get(
    "/uploads/<upload_id>",
    responses={200: UploadState, **problems(404)},
    provide_automatic_options=False,
)
def show(path: UploadPath) -> Response:
    """Get the state of an upload; `HEAD` returns the headers of tus: `Upload-Offset`, `Upload-Length`."""
    upload = state().store.uploads.settled(path.upload_id)
    response = json_response(
        UploadState(
            id=upload.id,
            filename=upload.filename,
            sha256=upload.sha256,
            size_bytes=upload.size_bytes,
            received_bytes=upload.received_bytes,
            expires_at=utc_text(datetime.fromtimestamp(upload.expires_at, UTC), timespec="seconds"),
        )
    )
    response.headers.update(_progress(upload))
    response.headers["Upload-Length"] = str(upload.size_bytes)
    if upload.metadata:
        response.headers["Upload-Metadata"] = upload.metadata
    return response


@api.patch(
    "/uploads/<upload_id>",
    openapi_extensions=OFFSET_BODY,
    responses={204: None, **problems(400, 404, 409, 413, 415, 423, 460, 507)},
    provide_automatic_options=False,
)
def append(path: UploadPath, header: PatchHeader) -> Response:
    """Continue an upload from its offset.

    Bytes that arrive before a connection breaks are kept: ask for the offset with `HEAD` and continue there.
    """
    return _append_response(path, header)


def _append_response(path: UploadPath, header: PatchHeader) -> Response:
    if request.mimetype != MEDIA_TYPE:
        raise UnsupportedMediaType(f"The body must have the Content-Type {MEDIA_TYPE}.")
    offset = byte_count("Upload-Offset", header.upload_offset)
    upload = _append(path.upload_id, offset, header.upload_checksum)
    return Response(status=204, headers=_progress(upload))


@api.delete(
    "/uploads/<upload_id>",
    responses={204: None, **problems(404, 409, 423, 503)},
    provide_automatic_options=False,
)
def terminate(path: UploadPath, header: ProtocolHeader) -> Response:
    """Remove an upload. Refused with 409 while a queued or running job needs it."""
    return _removed(path)


def _removed(path: UploadPath) -> Response:
    users = state().queue.using_upload(path.upload_id)
    if users:
        raise UploadInUse(
            f"The upload is needed by {len(users)} unfinished job(s): {listed(users)}.",
            "Wait until they have ended, or cancel them.",
        )
    state().store.uploads.delete(path.upload_id)
    return Response(status=204)


@api.route("/uploads/<upload_id>", methods=["POST"], provide_automatic_options=False)
def override(upload_id: str) -> Response:
    """Handles PATCH and DELETE from clients whose network only lets POST through."""
    method = request.headers.get("X-HTTP-Method-Override", "")
    path = UploadPath(upload_id=upload_id)
    if method == "PATCH":
        return _append_response(path, PatchHeader.model_validate(dict(request.headers)))
    if method == "DELETE":
        return _removed(path)
    raise MethodNotAllowed(["DELETE", "GET", "HEAD", "OPTIONS", "PATCH"])


def _append(upload_id: str, offset: int, checksum: str | None) -> Upload:
    uploads = state().store.uploads
    with uploads.appending(upload_id, offset, parse_checksum(checksum)) as appender:
        receive(appender)
    return uploads.get(upload_id)


def _progress(upload: Upload) -> dict[str, str]:
    return {
        "Cache-Control": "no-store",
        "Upload-Offset": str(upload.received_bytes),
        "Upload-Expires": http_date(upload.expires_at),
    }


def _limits() -> UploadLimits:
    settings, store = state().settings, state().store
    return UploadLimits(
        each_bytes=settings.upload_limit_bytes,
        quota_bytes=settings.upload_quota_bytes,
        retention_seconds=settings.upload_retention_seconds,
        reserved_bytes=state().queue.reserved_bytes(store.staging.bytes_of),
    )
