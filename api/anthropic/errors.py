"""Errors in Anthropic's shape: the problems of the rest of the API, written differently."""

import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Response, request
from flask_openapi3.blueprint import APIBlueprint
from werkzeug.exceptions import HTTPException, NotFound

from api.errors import (
    Problem,
    error_response,
    http_headers,
    problem_of_error,
    problem_of_http_error,
    sentences,
)
from api.headers import request_id
from api.openai.errors import KEPT_HEADERS, METHODS, check_method
from services.errors import GraftwerkError

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}
"""Types of errors by status; other refusals are `invalid_request_error`, other failures `api_error`."""


def error_object(error: GraftwerkError) -> dict[str, Any]:
    """Returns the error for a body or an event of a stream."""
    return _object(problem_of_error(error))


def _object(problem: Problem) -> dict[str, Any]:
    kind = TYPES.get(problem.status, "api_error" if problem.status >= 500 else "invalid_request_error")
    # messages of jobs use the names of `generate` requests
    message = re.sub(r"\bmax_new_tokens\b", "max_tokens", sentences(problem.detail, problem.hint))
    error = {"type": kind, "message": message, "code": problem.code}
    return {"type": "error", "error": error}


def _respond(problem: Problem, headers: Mapping[str, str]) -> Response:
    is_invalid = problem.status == HTTPStatus.UNPROCESSABLE_ENTITY
    status = HTTPStatus.BAD_REQUEST if is_invalid else problem.status
    body = json.dumps(_object(problem) | {"request_id": request_id()}, ensure_ascii=False)
    return error_response(body, status, "application/json", {**headers, "request-id": request_id()})


def on_graftwerk_error(error: GraftwerkError) -> Response:
    """Returns the response to an error of the services, or to one that a job ended with."""
    # the official client retries 409 and 5xx by itself, which only helps against a temporary error
    return _respond(problem_of_error(error), {"x-should-retry": "true" if error.transient else "false"})


def on_http_error(error: HTTPException) -> Response:
    """Returns the response to an error of HTTP itself."""
    kept = {name: value for name, value in http_headers(error).items() if name in KEPT_HEADERS}
    return _respond(problem_of_http_error(error), kept)


def unknown_url(rest: str) -> Response:
    """Raises NotFound for a path below messages that does not exist, MethodNotAllowed if it does with another method."""
    check_method()
    raise NotFound(f"There is no {request.method} /v1/messages/{rest} here.")


def handle(api: APIBlueprint) -> None:
    """Gives every error of the blueprint's views Anthropic's shape, also for paths below messages that do not exist."""
    api.register_error_handler(GraftwerkError, on_graftwerk_error)
    api.register_error_handler(HTTPException, on_http_error)
    api.add_url_rule("/messages/<path:rest>", view_func=unknown_url, methods=METHODS)
