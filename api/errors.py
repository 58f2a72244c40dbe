"""What an error looks like over HTTP: the one table from error classes to statuses, and RFC 9457 bodies."""

import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, current_app, request
from pydantic import BaseModel, Field, ValidationError
from werkzeug.exceptions import HTTPException

from api.headers import request_id
from services import errors as e

STATUS_OF: dict[type[e.GraftwerkError], HTTPStatus] = {
    e.GraftwerkError: HTTPStatus.INTERNAL_SERVER_ERROR,
    # requests
    e.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.InvalidName: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.UnsupportedOption: HTTPStatus.UNPROCESSABLE_ENTITY,
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
    e.QueueFull: HTTPStatus.TOO_MANY_REQUESTS,
    # the volume
    e.ModelNotFound: HTTPStatus.NOT_FOUND,
    e.ModelExists: HTTPStatus.CONFLICT,
    e.ModelInUse: HTTPStatus.CONFLICT,
    e.SourceNotFound: HTTPStatus.NOT_FOUND,
    e.ResultsNotFound: HTTPStatus.NOT_FOUND,
    e.UnsafeArchive: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.DigestMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.DiskFull: HTTPStatus.INSUFFICIENT_STORAGE,
    # what files say
    e.UnreadableFile: HTTPStatus.UNPROCESSABLE_ENTITY,
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
    # the service
    e.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    e.InvalidSettings: HTTPStatus.INTERNAL_SERVER_ERROR,
    e.VerificationFailed: HTTPStatus.UNPROCESSABLE_ENTITY,
    e.InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The one table: each class of `services/errors.py` stands in it (a test compares the two)."""

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
    500: e.InternalError.code,
}
"""Codes of the errors that HTTP itself has, by status; any other HTTP error is `http_<status>`."""

RETRY_AFTER_SECONDS = {HTTPStatus.TOO_MANY_REQUESTS: 5, HTTPStatus.SERVICE_UNAVAILABLE: 5}


class FieldError(BaseModel):
    """One field of a request that is not as it must be."""

    loc: list[str | int] = Field(
        description="The way to the field, from the outside in.", examples=[["target"]]
    )
    msg: str = Field(examples=["Field required"])


class Problem(BaseModel):
    """Any error (RFC 9457, `application/problem+json`); `code` is stable, the sentences may change."""

    type: str = Field(examples=["urn:graftwerk:error:model_not_found"])
    title: str = Field(description="What this code means.")
    status: int
    code: str = Field(description="Stable: one of docs/errors.md.", examples=["model_not_found"])
    detail: str = Field(description="What was found and what was needed.")
    hint: str = Field(default="", description="What to do about it.")
    errors: list[FieldError] = Field(default=[], description="The fields that are wrong, where it is fields.")


class InvalidFields(e.InvalidRequest):
    """The request does not have the shape that its kind needs."""

    def __init__(self, fields: list[FieldError]) -> None:
        sentences = [f"{'.'.join(map(str, field.loc)) or 'the request'}: {field.msg}" for field in fields]
        super().__init__("; ".join(sentences), "The shapes of all requests are at /docs.")
        self.fields = fields

    @classmethod
    def of(cls, error: ValidationError, *, kinds: Iterable[str] = ()) -> "InvalidFields":
        """Pydantic's findings; the tag that it puts before the fields of one of `kinds` is left out."""
        return cls([_field_error(dict(found), tuple(kinds)) for found in error.errors(include_url=False)])


def _field_error(found: Mapping[str, Any], kinds: tuple[str, ...]) -> FieldError:
    loc = list(found["loc"])
    if loc and loc[0] in kinds:
        loc = loc[1:]
    if found["type"].startswith("union_tag"):
        loc = ["kind"]
    return FieldError(loc=loc, msg=found["msg"].removeprefix("Value error, "))


def listed_class(error: e.GraftwerkError) -> type[e.GraftwerkError]:
    """The nearest of an error's classes that stands in the table."""
    return next(ancestor for ancestor in type(error).__mro__ if ancestor in STATUS_OF)


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The response that carries a problem."""
    response = Response(problem.model_dump_json(), problem.status, mimetype="application/problem+json")
    response.headers.update(headers or {})
    response.headers["Cache-Control"] = "no-store"
    if problem.status in RETRY_AFTER_SECONDS:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS[HTTPStatus(problem.status)])
    return response


def on_graftwerk_error(error: e.GraftwerkError) -> Response:
    """An error that a service raised on purpose."""
    listed = listed_class(error)
    return problem_response(
        Problem(
            type=f"urn:graftwerk:error:{error.code}",
            title=(listed.__doc__ or error.code).splitlines()[0],
            status=STATUS_OF[listed],
            code=error.code,
            detail=error.message,
            hint=error.hint,
            errors=error.fields if isinstance(error, InvalidFields) else [],
        )
    )


def on_http_exception(error: HTTPException) -> Response:
    """An error of HTTP itself, and (as 500, without its traceback) whatever nobody foresaw."""
    status = error.code or 500
    if status == 500:
        logging.getLogger(__name__).error("request %s was answered with 500", request_id())
    code = HTTP_CODES.get(status, f"http_{status}")
    problem = Problem(
        type=f"urn:graftwerk:error:{code}",
        title=error.name,
        status=status,
        code=code,
        detail=_detail(error, status),
        hint="The API's log has the details, under this response's X-Request-Id." if status == 500 else "",
    )
    kept = {
        name: value for name, value in error.get_headers() if name not in ("Content-Type", "Content-Length")
    }
    return problem_response(problem, kept)


def _detail(error: HTTPException, status: int) -> str:
    own = error.description if error.description != type(error).description else None
    if status == HTTPStatus.NOT_FOUND:
        return own or f"There is nothing at {request.path}: GET /openapi.json lists what there is."
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return own or f"{request.method} is not offered at {request.path}."
    if status == HTTPStatus.INTERNAL_SERVER_ERROR:
        return own or "The API failed in a way that nobody foresaw."
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return (
            own
            or f"The body is longer than the {current_app.config['MAX_CONTENT_LENGTH']} bytes that are accepted."
        )
    return error.description or error.name


def on_validation_error(error: ValidationError) -> Response:
    """Query, path and header parameters that are not as documented (flask-openapi3 aborts with this)."""
    return on_graftwerk_error(InvalidFields.of(error))


def problems(*statuses: int) -> dict[str | int | HTTPStatus, Any]:
    """What the document says about the errors of an operation."""
    schema = {"$ref": "#/components/schemas/Problem"}
    content = {"application/problem+json": {"schema": schema}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


def register(app: Flask) -> None:
    """Every error of the application leaves as a problem."""
    app.register_error_handler(e.GraftwerkError, on_graftwerk_error)
    app.register_error_handler(HTTPException, on_http_exception)
