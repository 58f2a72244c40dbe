"""The endpoints under /v1."""

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from struct import pack
from typing import Any

from flask import Response
from flask import request as flask_request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from api.openai import errors
from api.openai.job_waiter import submit
from api.openai.responses import ResponseBuilder
from api.openai.schemas import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    embed_request,
    generate_request,
    names_of,
    parse,
)
from api.openai.streaming import Stream
from api.openapi import SECURITY, body_of, object_of
from api.request_body import read_body
from api.responses import answer_events
from api.state import state
from services.backend import FORWARDED_HEADER, SERVICE_HEADER, ServedModel
from services.errors import GraftwerkError
from services.kinds.generate import GenerateRequest
from services.models.manifest import read_manifest
from services.names import SERVED_NAME_PATTERN
from services.preflight import preflight

REFUSALS = object_of(401, 403, 404, 500)
WORK_REFUSALS = object_of(400, 401, 403, 404, 413, 415, 429, 500, 503)

api = APIBlueprint("openai", __name__, url_prefix="/v1", abp_tags=[Tag(name="openai")], abp_security=SECURITY)
errors.register(api)


class ModelPath(BaseModel):
    """Which model."""

    model: str


@api.get("/models", responses={**object_of(200), **REFUSALS})
def list_models() -> Response:
    """List the models that can generate: those of the shelf, then those of the server that takes generation."""
    ours = {name: _model(name) for name in state().store.names() if _can_generate(name)}
    theirs = [_served(model) for name, model in _served_models().items() if name not in ours]
    response = _json({"object": "list", "data": [*ours.values(), *theirs]})
    if _is_forwarded():
        response.headers[SERVICE_HEADER] = state().queue.identity()
    return response


@api.get("/models/<path:model>", responses={**object_of(200), **REFUSALS})
def retrieve_model(path: ModelPath) -> Response:
    """Look at a model, by its name or by `base+adapter`."""
    probe = _probe(path.model)
    if not _is_on_the_shelf(probe.model) and path.model in (served := _served_models()):
        return _json(_served(served[path.model]))
    preflight(probe, state().store, {})
    return _json(_model(path.model))


@api.post(
    "/chat/completions", openapi_extensions=body_of(ChatBody), responses={**object_of(200), **WORK_REFUSALS}
)
def chat() -> Response:
    """Answer a conversation.

    A `generate` job answers, and is canceled when the client goes. Beside OpenAI's parameters there are `top_k`,
    `min_p`, `repetition_penalty` and `template`. With `stream` the answer comes as server-sent events.
    """
    return _complete(parse(ChatBody, read_body()), "chat.completions")


@api.post(
    "/completions", openapi_extensions=body_of(CompletionBody), responses={**object_of(200), **WORK_REFUSALS}
)
def completions() -> Response:
    """Continue a text, or several.

    As for chats; `template` makes the prompt an instruction.
    """
    return _complete(parse(CompletionBody, read_body()), "completions")


@api.post(
    "/embeddings", openapi_extensions=body_of(EmbeddingBody), responses={**object_of(200), **WORK_REFUSALS}
)
def embeddings() -> Response:
    """Turn texts into vectors.

    The mean of the last hidden states over a text's tokens, scaled to length 1, by an `embed` job.
    """
    body = parse(EmbeddingBody, read_body())
    result = submit(state(), embed_request(body, _origin("embeddings"))).ended().result or {}
    encode = _base64 if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(result["embeddings"])
    ]
    return _json({"object": "list", "data": data, "model": body.model, "usage": result["usage"]})


def _complete(body: ChatBody | CompletionBody, endpoint: str) -> Response:
    request = generate_request(body, _origin(endpoint))
    if _is_forwarded():
        request = request.model_copy(update={"forward": False})
    waiting = submit(state(), request)
    head = ResponseBuilder(waiting.job, body.model, is_chat=isinstance(body, ChatBody))
    if not body.stream:
        return _json(head.whole(waiting.ended().result or {}))
    answers = request.sampling.n * len(request.prompts or [None])
    stream = Stream(waiting, head, answers=answers, with_usage=body.with_usage)
    response = answer_events(stream.begin())
    response.call_on_close(stream.close)
    return response


def _origin(endpoint: str) -> dict[str, str]:
    """The metadata by which such jobs are told from others."""
    return {"origin": "openai", "endpoint": endpoint}


def _is_forwarded() -> bool:
    """Whether another Graftwerk asks: it gets what is ours, so that nothing goes in circles."""
    return FORWARDED_HEADER in flask_request.headers


def _served_models() -> Mapping[str, ServedModel]:
    backend = state().backend
    return {} if backend is None or _is_forwarded() else backend.models()


def _served(model: ServedModel) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by}


def _is_on_the_shelf(name: str) -> bool:
    return name in state().store.names()


def _probe(model: str) -> GenerateRequest:
    return GenerateRequest(kind="generate", prompt="", **names_of(model, SERVED_NAME_PATTERN))


def _can_generate(name: str) -> bool:
    try:
        preflight(_probe(name), state().store, {})
    except (GraftwerkError, OSError):  # what is not whole, and what is deleted this very moment
        return False
    return True


def _model(name: str) -> dict[str, Any]:
    folder = state().store.path(names_of(name)["model"])
    manifest = read_manifest(folder)
    made = manifest.created_at if manifest else datetime.fromtimestamp(folder.stat().st_mtime)
    owner = "graftwerk" if manifest else "local"
    return {"id": name, "object": "model", "created": int(made.timestamp()), "owned_by": owner}


def _base64(vector: list[float]) -> str:
    """Little-endian float32, as the official client asks for it."""
    return base64.b64encode(pack(f"<{len(vector)}f", *vector)).decode()


def _json(value: Any) -> Response:
    response = Response(json.dumps(value, ensure_ascii=False), mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response
