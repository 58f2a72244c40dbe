"""`/m/{model}/…`: the endpoints of OpenAI's API with the model in the address, for programs that name none or another one."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from flask import request

from api.request_body import read_body

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ADDRESS = re.compile(r"(?P<prefix>/m/(?P<model>.+?))(?P<path>/v1/.*|/tokenize|/detokenize|/tokenizer_info)")
"""A model may have slashes, if another server has it."""

KEY = "graftwerk.model"
"""Entry of the environment of a request whose address names the model."""


class FixedModel:
    """Application that serves `/m/{model}/…` as the same path without this beginning, and notes the model.

    All rules apply as to the path without it: who may call it, the limits, the documentation.
    """

    def __init__(self, application: "WSGIApplication") -> None:
        self._application = application

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Handles a request."""
        found = ADDRESS.fullmatch(environ.get("PATH_INFO", ""))
        if found is not None:
            prefix = environ.get("SCRIPT_NAME", "") + found["prefix"]
            # WSGI hands paths over as Latin-1
            model = found["model"].encode("latin-1").decode("utf-8", "replace")
            environ = {**environ, "SCRIPT_NAME": prefix, "PATH_INFO": found["path"], KEY: model}
        return self._application(environ, start_response)


def fixed_model() -> str | None:
    """Returns the model that the address of the current request names, if it does."""
    found: str | None = request.environ.get(KEY)
    return found


def read_body_with_model() -> Any:
    """Returns the JSON value in the current body, with the model of the address if that names one. Raises as `read_body`."""
    value, model = read_body(), fixed_model()
    return {**value, "model": model} if model is not None and isinstance(value, dict) else value
