"""Errors in OpenAI's shape, from the same table of statuses as everywhere."""

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException

from api.errors import HTTP_CODES, RETRY_AFTER_SECONDS, STATUS_OF, listed_class, on_http_exception
from services import errors as e
from services.jobs.status import JobError

BAD_REQUEST = {HTTPStatus.UNPROCESSABLE_ENTITY: HTTPStatus.BAD_REQUEST}
"""OpenAI's API says 400 where ours says 422."""

CODES = {
    e.PromptTooLong.code: "context_length_exceeded",
    HTTP_CODES[401]: "invalid_api_key",
}
"""Codes that programs written for OpenAI's API look for; all others are ours."""

CLASS_OF_CODE: dict[str, type[e.GraftwerkError]] = {listed.code: listed for listed in STATUS_OF}


class InvalidParameter(e.InvalidRequest):
    """A parameter of the request is wrong, unknown or not offered."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param or None

    @classmethod
    def of(cls, error: ValidationError, names: Mapping[str, str]) -> "InvalidParameter":
        """Pydantic's findings; `names` are the parameters' names where ours differ."""
        found = [
            (_path(item["loc"], names), item["type"], item["msg"])
            for item in error.errors(include_url=False, include_input=False)
        ]
        return cls(found[0][0], "; ".join(_sentence(*item) for item in found))


def _path(loc: tuple[str | int, ...], names: Mapping[str, str]) -> str:
    return ".".join(names.get(str(part), str(part)) for part in loc if part != "[key]")


def _sentence(param: str, kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return f"{param} is not offered here: leave it out"
    message = message.removeprefix("Value error, ")
    return f"{param}: {message}" if param else message


def error_of_job(error: JobError) -> e.GraftwerkError:
    """The error that a job ended with, as it was raised in the worker."""
    return CLASS_OF_CODE.get(error.code, e.InternalError)(error.message, error.hint)


def error_object(error: e.GraftwerkError) -> dict[str, Any]:
    """`{"error": {…}}` for a body or an event."""
    return _object(
        _status(error),
        f"{error.message} {error.hint}".strip(),
        CODES.get(error.code, error.code),
        param="model" if isinstance(error, e.ModelNotFound) else getattr(error, "param", None),
    )


def _status(error: e.GraftwerkError) -> HTTPStatus:
    status = STATUS_OF[listed_class(error)]
    return BAD_REQUEST.get(status, status)


def _object(status: int, message: str, code: str, *, param: str | None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        kind = "rate_limit_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _respond(status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    response = Response(
        json.dumps(body, ensure_ascii=False), status, dict(headers), mimetype="application/json"
    )
    response.headers["Cache-Control"] = "no-store"
    if status in RETRY_AFTER_SECONDS:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS[HTTPStatus(status)])
    return response


def on_graftwerk_error(error: e.GraftwerkError) -> Response:
    """An error that a service raised on purpose, or that a job ended with."""
    # the official client tries 409 and 5xx again of itself, which helps only where the error is a passing one
    retry = {"x-should-retry": "true" if error.transient else "false"}
    return _respond(_status(error), error_object(error), retry)


def on_http_error(error: HTTPException) -> Response:
    """An error of HTTP itself: its status, headers and sentence as in the rest of the API."""
    problem = on_http_exception(error)
    found = problem.get_json()
    code = found["code"]
    body = _object(
        problem.status_code, f"{found['detail']} {found['hint']}".strip(), CODES.get(code, code), param=None
    )
    kept = {name: value for name, value in problem.headers.items() if name == "WWW-Authenticate"}
    return _respond(problem.status_code, body, kept)


def unknown_url(rest: str) -> Response:
    """What is asked for under /v1 and is not there, by whatever method."""
    message = f"There is no {request.method} /v1/{rest} here."
    return _respond(404, _object(404, message, "unknown_url", param=None), {})


def register(api: APIBlueprint) -> None:
    """Every error of the blueprint leaves in OpenAI's shape."""
    api.register_error_handler(e.GraftwerkError, on_graftwerk_error)
    api.register_error_handler(HTTPException, on_http_error)
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    api.add_url_rule("/<path:rest>", view_func=unknown_url, methods=methods)
