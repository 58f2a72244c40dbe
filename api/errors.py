"""Errors over HTTP: the table from error classes to statuses, and RFC 9457 bodies."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, current_app, request
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from werkzeug.exceptions import HTTPException, InternalServerError

from api.headers import request_id
from api.state import state
from services import errors as e
from services.bounded_text import LISTED, bounded, cut
from services.kinds.tools import TOOL_TAGS
from services.validation import is_none, reason_of

CHECKSUM_MISMATCH = 460
"""Status of the tus protocol, which Python's table does not have."""

STATUS_OF: dict[type[e.GraftwerkError], int] = {
    e.GraftwerkError: HTTPStatus.INTERNAL_SERVER_ERROR,
    # requests
    e.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.InvalidName: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnsupportedOption: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnsupportedSchema: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.IdempotencyConflict: HTTPStatus.UNPROCESSABLE_ENTITY,
    # jobs
    e.JobNotFound: HTTPStatus.NOT_FOUND,
    e.JobNotEnded: HTTPStatus.CONFLICT,
    e.JobAlreadyEnded: HTTPStatus.CONFLICT,
    e.JobCanceled: HTTPStatus.CONFLICT,
    e.UpstreamFailed: HTTPStatus.CONFLICT,
    e.JobTimeout: HTTPStatus.GATEWAY_TIMEOUT,
    e.JobAbandoned: HTTPStatus.INTERNAL_SERVER_ERROR,
    e.ExecutionSuperseded: HTTPStatus.CONFLICT,
    e.DeliveryNotFound: HTTPStatus.NOT_FOUND,
    e.DeliveryPending: HTTPStatus.CONFLICT,
    e.QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    # the volume
    e.ModelNotFound: HTTPStatus.NOT_FOUND,
    e.ModelExists: HTTPStatus.CONFLICT,
    e.ModelInUse: HTTPStatus.CONFLICT,
    e.SourceNotFound: HTTPStatus.NOT_FOUND,
    e.ResultsNotFound: HTTPStatus.NOT_FOUND,
    e.UnsafeArchive: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.DigestMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.VolumeUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    e.DiskFull: HTTPStatus.INSUFFICIENT_STORAGE,
    # uploads
    e.UploadNotFound: HTTPStatus.NOT_FOUND,
    e.UploadUnfinished: HTTPStatus.CONFLICT,
    e.UploadLocked: HTTPStatus.LOCKED,
    e.UploadInUse: HTTPStatus.CONFLICT,
    e.WrongOffset: HTTPStatus.CONFLICT,
    e.UploadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    e.UploadQuotaExceeded: HTTPStatus.INSUFFICIENT_STORAGE,
    e.ChecksumMismatch: CHECKSUM_MISMATCH,
    # the Hub
    e.HubDisabled: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.HubNotFound: HTTPStatus.NOT_FOUND,
    e.HubGated: HTTPStatus.FORBIDDEN,
    e.HubUnreachable: HTTPStatus.SERVICE_UNAVAILABLE,
    e.HubFileChanged: HTTPStatus.CONFLICT,
    # contents of files
    e.UnreadableFile: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.ReadLimitExceeded: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnsafePickle: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnsupportedFormat: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.IncompleteCheckpoint: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnknownTensor: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.ShapeMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.ConfigMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.NonFiniteTensor: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.WrongModelKind: HTTPStatus.UNPROCESSABLE_ENTITY,
    # adapters
    e.IncompleteAdapter: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnsupportedAdapter: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnknownAdapterKey: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.AdapterMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.WrongAdapterOrder: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.VocabularyMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnreadableTokenizer: HTTPStatus.UNPROCESSABLE_ENTITY,
    # generating
    e.InvalidText: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.PromptTooLong: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.NonFiniteLogits: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnknownTemplate: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.TemplateLimitExceeded: HTTPStatus.UNPROCESSABLE_ENTITY,
    # the service
    e.InsufficientMemory: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.MemoryUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    e.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    e.InvalidSettings: HTTPStatus.INTERNAL_SERVER_ERROR,
    e.VerificationFailed: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""Status of each class of `services/errors.py` (a test compares the two)."""

HTTP_CODES: dict[int, str] = {
    400: "malformed_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    412: "precondition_failed",
    413: "body_too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    429: "too_many_requests",
    500: e.InternalError.code,
}
"""Codes of the errors of HTTP itself, by status; any other HTTP error is `http_<status>`."""

PHRASES: dict[int, str] = {status.value: status.phrase for status in HTTPStatus}
PHRASES[CHECKSUM_MISMATCH] = "Checksum Mismatch"
"""Texts of the status lines, by status."""

NAME_LIMIT = 100
"""Most characters of a field's name in an error: unknown fields have any."""

FIELD_LIMIT = 500
"""Most characters of the message about one field."""

RETRY_AFTER_SECONDS: dict[int, int] = {HTTPStatus.TOO_MANY_REQUESTS: 5, HTTPStatus.SERVICE_UNAVAILABLE: 5}


class FieldError(BaseModel):
    """An invalid field of a request."""

    loc: list[str | int] = Field(
        description="Path to the field, from the outermost object in.", examples=[["target"]]
    )
    msg: str = Field(examples=["Field required"])


class Problem(BaseModel):
    """An error (RFC 9457, `application/problem+json`); `code` is stable, the sentences may change."""

    type: str = Field(examples=["urn:graftwerk:error:model_not_found"])
    title: str = Field(description="Meaning of the code.")
    status: int
    code: str = Field(description="Stable code, one of docs/errors.md.", examples=["model_not_found"])
    detail: str = Field(description="What is wrong with this request.")
    hint: str = Field(default="", description="What to do about it.")
    errors: list[FieldError] = Field(default=[], description="The invalid fields of the request, if any.")
    order: list[str] | None = Field(
        default=None,
        exclude_if=is_none,
        description="Of `wrong_adapter_order`: the adapters in the order that fits; empty if no order of these does.",
    )


class InvalidFields(e.InvalidRequest):
    """The request does not have the fields that its kind needs."""

    def __init__(self, fields: list[FieldError], *, more: int = 0) -> None:
        """`more` is the number of invalid fields besides these."""
        found = [f"{'.'.join(map(str, field.loc)) or 'the request'}: {field.msg}" for field in fields]
        others = [f"{more} more fields are invalid"] if more else []
        super().__init__(sentences(*found, *others), "The fields of all requests are documented at /docs.")
        self.fields = fields

    @classmethod
    def of(cls, error: ValidationError, *, kinds: Iterable[str] = ()) -> "InvalidFields":
        """Returns pydantic's errors, without the tag that it puts before the fields of one of `kinds`."""
        listed, more = first_errors(error)
        return cls([_field_error(found, tuple(kinds)) for found in listed], more=more)


def first_errors(error: ValidationError) -> tuple[Sequence[ErrorDetails], int]:
    """Returns the first of pydantic's errors, and the number of the others."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return found[:LISTED], max(0, len(found) - LISTED)


def _field_error(found: ErrorDetails, kinds: tuple[str, ...]) -> FieldError:
    loc = [part for part in found["loc"] if part not in TOOL_TAGS]
    if loc and loc[0] in kinds:
        loc = loc[1:]
    if found["type"].startswith("union_tag"):
        loc = ["kind"]
    return FieldError(
        loc=[cut(part, NAME_LIMIT) if isinstance(part, str) else part for part in loc],
        msg=bounded(reason_of(found["msg"]), FIELD_LIMIT),
    )


def sentences(*texts: str) -> str:
    """Returns the texts as one, each ending with a full stop; records of older jobs have messages without one."""
    return " ".join(text if text.endswith((".", "!", "?")) else f"{text}." for text in texts if text)


def problem_of_error(error: e.GraftwerkError) -> Problem:
    """Returns an error of the services as a problem."""
    listed = next(ancestor for ancestor in type(error).__mro__ if ancestor in STATUS_OF)
    return Problem(
        type=f"urn:graftwerk:error:{error.code}",
        title=(listed.__doc__ or error.code).splitlines()[0],
        status=STATUS_OF[listed],
        code=error.code,
        detail=error.message,
        hint=error.hint,
        errors=error.fields if isinstance(error, InvalidFields) else [],
        order=error.order if isinstance(error, e.WrongAdapterOrder) else None,
    )


def problem_of_http_error(error: HTTPException) -> Problem:
    """Returns an error of HTTP itself as a problem; an unexpected exception arrives as 500, without its traceback."""
    status = error.code or 500
    if status == 500:
        logging.getLogger(__name__).error("request %s was answered with 500", request_id())
    code = HTTP_CODES.get(status, f"http_{status}")
    return Problem(
        type=f"urn:graftwerk:error:{code}",
        title=error.name,
        status=status,
        code=code,
        detail=bounded(_detail(error, status)),
        hint="The API's log has the details, under this response's X-Request-Id." if status == 500 else "",
    )


def _detail(error: HTTPException, status: int) -> str:
    own = error.description if error.description != type(error).description else None
    if status == HTTPStatus.NOT_FOUND:
        return own or f"There is nothing at {request.path}: GET /openapi.json lists all paths."
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return own or f"{request.method} is not offered at {request.path}."
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return own or "The API failed unexpectedly."
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        limit = current_app.config["MAX_CONTENT_LENGTH"]
        return own or f"The body is longer than the limit of {limit} bytes."
    return error.description or error.name


def http_headers(error: HTTPException) -> dict[str, str]:
    """Returns the headers of an HTTP error, `Allow` and `WWW-Authenticate` for example."""
    return {
        name: value for name, value in error.get_headers() if name not in ("Content-Type", "Content-Length")
    }


def error_response(
    body: str, status: int, mimetype: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Returns a response that is never cached and says when to try again if the error is temporary."""
    response = Response(body, f"{status} {PHRASES.get(status, 'Error')}", mimetype=mimetype)
    response.headers.update(headers or {})
    response.headers["Cache-Control"] = "no-store"
    if status in RETRY_AFTER_SECONDS:
        response.headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS[status]))
    return response


def _problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    return error_response(problem.model_dump_json(), problem.status, "application/problem+json", headers)


def on_graftwerk_error(error: e.GraftwerkError) -> Response:
    """Returns the response to an error of the services."""
    return _problem_response(problem_of_error(error))


def on_http_error(error: HTTPException) -> Response:
    """Returns the response to an error of HTTP itself."""
    return _problem_response(problem_of_http_error(error), http_headers(error))


def on_validation_error(error: ValidationError) -> Response:
    """Returns the response to invalid query, path or header parameters (flask-openapi3 aborts with it).

    It has the shape that the errors of the route's views have.
    """
    return current_app.make_response(current_app.handle_user_exception(InvalidFields.of(error)))


def problems(*statuses: int) -> dict[str | int | HTTPStatus, Any]:
    """Returns the part of the OpenAPI document about these errors of an operation."""
    schema = {"$ref": "#/components/schemas/Problem"}
    content = {"application/problem+json": {"schema": schema}}
    return {s: {"description": PHRASES[s], "content": content} for s in statuses}


def on_os_error(error: OSError) -> Response:
    """Returns the response to an error of the operating system: the volume's, if it is not available."""
    try:
        state().store.volume.require_writable()
    except e.VolumeUnavailable as unavailable:
        return on_graftwerk_error(unavailable)
    logging.getLogger(__name__).error("unexpected error of the operating system", exc_info=error)
    return on_http_error(InternalServerError())


def register(app: Flask) -> None:
    """Makes every error of the application a problem."""
    app.register_error_handler(OSError, on_os_error)
    app.register_error_handler(e.GraftwerkError, on_graftwerk_error)
    app.register_error_handler(HTTPException, on_http_error)
