"""Errors in OpenAI's shape: the problems of the rest of the API, written differently."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Response, current_app, request
from flask_openapi3.blueprint import APIBlueprint
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from api.errors import (
    FIELD_LIMIT,
    HTTP_CODES,
    NAME_LIMIT,
    STATUS_OF,
    Problem,
    error_response,
    first_errors,
    http_headers,
    problem_of_error,
    problem_of_http_error,
    sentences,
)
from api.openai.parameters import REFUSALS
from services import errors as e
from services.bounded_text import bounded, cut
from services.jobs.status import JobError
from services.kinds.shared import Failure
from services.validation import reason_of

CODES = {
    e.PromptTooLong.code: "context_length_exceeded",
    HTTP_CODES[401]: "invalid_api_key",
}
"""Codes that clients of OpenAI's API look for; all others are ours."""

CLASS_OF_CODE: dict[str, type[e.GraftwerkError]] = {listed.code: listed for listed in STATUS_OF}

UNKNOWN_URL = "unknown_url"

_NOT_A_PARAMETER = re.compile(r"\[(key|text|list|of \w+)\]")
"""Part of pydantic's path to a value that is not a name: a key of a mapping, or a tag of a union."""

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
KEPT_HEADERS = ("Allow", "Retry-After", "WWW-Authenticate")


class InvalidParameter(e.InvalidRequest):
    """A parameter of the request is wrong, unknown or not supported."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = cut(param, NAME_LIMIT) or None

    @classmethod
    def of(cls, error: ValidationError, names: Mapping[str, str]) -> "InvalidParameter":
        """Returns pydantic's errors; `names` are the parameters' names where ours differ."""
        listed, more = first_errors(error)
        found = [(_path(item["loc"], names), item["type"], item["msg"]) for item in listed]
        others = [f"{more} more parameters are wrong"] if more else []
        return cls(found[0][0], sentences(*(_sentence(*item) for item in found), *others))


def _path(loc: tuple[str | int, ...], names: Mapping[str, str]) -> str:
    return ".".join(
        names.get(str(part), str(part)) for part in loc if not _NOT_A_PARAMETER.fullmatch(str(part))
    )


def _sentence(param: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return REFUSALS.get(param, f"{param} is not supported here. Leave it out.")
    message = bounded(reason_of(message), FIELD_LIMIT)
    return f"{param}: {message}" if param else message


def error_of(failure: JobError | Failure) -> e.GraftwerkError:
    """Returns the error that a job, or one of its outputs, ended with, as it was raised in the worker."""
    return CLASS_OF_CODE.get(failure.code, e.InternalError)(failure.message, failure.hint)


def error_object(error: e.GraftwerkError) -> dict[str, Any]:
    """Returns `{"error": {…}}` for a body or an event of a stream."""
    param = "model" if isinstance(error, e.ModelNotFound) else getattr(error, "param", None)
    return _object(problem_of_error(error), param)


def _object(problem: Problem, param: str | None = None) -> dict[str, Any]:
    status = _status(problem)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    # messages of jobs use the names of `generate` requests
    message = re.sub(r"\bmax_new_tokens\b", "max_tokens", sentences(problem.detail, problem.hint))
    code = CODES.get(problem.code, problem.code)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _status(problem: Problem) -> int:
    """Returns the problem's status; OpenAI's API uses 400 where ours uses 422."""
    return HTTPStatus.BAD_REQUEST if problem.status == HTTPStatus.UNPROCESSABLE_ENTITY else problem.status


def _respond(status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    return error_response(json.dumps(body, ensure_ascii=False), status, "application/json", headers)


def on_graftwerk_error(error: e.GraftwerkError) -> Response:
    """Returns the response to an error of the services, or to one that a job ended with."""
    # the official client retries 409 and 5xx by itself, which only helps against a temporary error
    retry = {"x-should-retry": "true" if error.transient else "false"}
    return _respond(_status(problem_of_error(error)), error_object(error), retry)


def on_http_error(error: HTTPException) -> Response:
    """Returns the response to an error of HTTP itself."""
    problem = problem_of_http_error(error)
    kept = {name: value for name, value in http_headers(error).items() if name in KEPT_HEADERS}
    return _respond(_status(problem), _object(problem), kept)


def check_method() -> None:
    """Raises MethodNotAllowed if the current path, which has no view, has one with another method."""
    offered = [method for method in METHODS if _is_offered(method)]
    if offered:
        raise MethodNotAllowed([*offered, "OPTIONS"])


def unknown_url(rest: str) -> Response:
    """Returns the response to a path under /v1 that does not exist. Raises MethodNotAllowed."""
    check_method()
    message = bounded(f"There is no {request.method} /v1/{rest} here.")
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": UNKNOWN_URL}
    return _respond(HTTPStatus.NOT_FOUND, {"error": error}, {})


def handle(api: APIBlueprint) -> None:
    """Gives every error of the blueprint's views OpenAI's shape."""
    api.register_error_handler(e.GraftwerkError, on_graftwerk_error)
    api.register_error_handler(HTTPException, on_http_error)


def register(api: APIBlueprint) -> None:
    """Does the same as `handle`, also for all paths below the blueprint's that do not exist."""
    handle(api)
    api.add_url_rule("/<path:rest>", view_func=unknown_url, methods=METHODS)


def _is_offered(method: str) -> bool:
    """Returns True if another view has the current request's path with this method."""
    adapter = current_app.create_url_adapter(request)
    assert adapter is not None
    endpoint: str = adapter.match(method=method)[0]
    return endpoint != request.endpoint
