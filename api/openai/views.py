"""The endpoints under /v1."""

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from struct import pack
from typing import Any

from flask import Response
from flask import request as http_request
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from api import sse
from api.openai import errors
from api.openai.body import parse
from api.openai.job_waiter import generated, result_of, submit
from api.openai.parameters import ignored_parameters
from api.openai.responses import ResponseBuilder, extension
from api.openai.schemas import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    embed_request,
    generate_request,
    split_model,
)
from api.openai.streaming import Stream
from api.openapi import SECURITY, body_of, object_of
from api.request_body import read_body
from api.state import state
from services.backend import FORWARDED_HEADER, SERVICE_HEADER, ServedModel
from services.kinds.embed import EmbedResult
from services.kinds.generate import GenerateRequest
from services.kinds.model_summary import ModelSummary
from services.names import SERVED_NAME_PATTERN

REFUSALS = object_of(401, 403, 404, 429, 500)
WORK_REFUSALS = object_of(400, 401, 403, 404, 413, 415, 429, 500, 503)

api = APIBlueprint("openai", __name__, url_prefix="/v1", abp_tags=[Tag(name="openai")], abp_security=SECURITY)
errors.register(api)


class ModelPath(BaseModel):
    """Path parameter `model`: a model's name, or `base+adapter`."""

    model: str


@api.get("/models", responses={**object_of(200), **REFUSALS})
def list_models() -> Response:
    """List the models that can generate.

    Models of the volume come first, then those of the server of `GENERATE_BACKEND_URL`.
    """
    local = {
        record.summary.name: _local_model(record.summary.name, record.summary)
        for record in state().models.all()
        if record.generates
    }
    remote = [_remote_model(model) for name, model in _served_models().items() if name not in local]
    response = _json({"object": "list", "data": [*local.values(), *remote]})
    if _is_forwarded():
        response.headers[SERVICE_HEADER] = state().queue.identity()
    return response


@api.get("/models/<path:model>", responses={**object_of(200), **REFUSALS})
def retrieve_model(path: ModelPath) -> Response:
    """Get a model by its name or by `base+adapter`."""
    probe = _probe(path.model)
    if probe.model not in state().store.names() and path.model in (served := _served_models()):
        return _json(_remote_model(served[path.model]))
    state().preflight(probe)
    return _json(_local_model(path.model, state().models.describe(probe.model)))


@api.post(
    "/chat/completions", openapi_extensions=body_of(ChatBody), responses={**object_of(200), **WORK_REFUSALS}
)
def chat() -> Response:
    """Generate the next turn of a conversation.

    A `generate` job produces it and is canceled when the client disconnects. Graftwerk's own parameters are `top_k`,
    `min_p`, `repetition_penalty` and `template`. With `stream` the text arrives as server-sent events. Parameters that
    are left out (`tools`, for example) are listed in `graftwerk.ignored` of the response.
    """
    return _complete(ChatBody, "chat.completions")


@api.post(
    "/completions", openapi_extensions=body_of(CompletionBody), responses={**object_of(200), **WORK_REFUSALS}
)
def completions() -> Response:
    """Continue one or more texts.

    The same as for chats; with `template` the prompt is an instruction. A prompt may be token ids. `echo` with `logprobs`
    scores the prompt: the log-probabilities of all its tokens come before those of the new ones, also with `max_tokens` 0.
    """
    return _complete(CompletionBody, "completions")


@api.post(
    "/embeddings", openapi_extensions=body_of(EmbeddingBody), responses={**object_of(200), **WORK_REFUSALS}
)
def embeddings() -> Response:
    """Turn texts into vectors.

    An `embed` job takes the mean of the last hidden states over a text's tokens and scales it to length 1.
    """
    value = read_body()
    body = parse(EmbeddingBody, value)
    job = submit(state(), embed_request(body, _origin("embeddings"))).ended()
    result = result_of(job, EmbedResult)
    encode = _base64 if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(result.embeddings)
    ]
    usage = result.usage.model_dump(exclude_unset=True)
    own = {"model": body.model, "usage": usage, "graftwerk": extension(job, ignored_parameters(value))}
    return _json({"object": "list", "data": data} | own)


def _complete(body_type: type[ChatBody] | type[CompletionBody], endpoint: str) -> Response:
    value = read_body()
    body = parse(body_type, value)
    request = generate_request(body, _origin(endpoint))
    if _is_forwarded():
        request = request.model_copy(update={"forward": False})
    waiter = submit(state(), request)
    builder = ResponseBuilder(
        job=waiter.job,
        model=body.model,
        is_chat=isinstance(body, ChatBody),
        echo=isinstance(body, CompletionBody) and body.echo,
        ignored=ignored_parameters(value),
    )
    if not body.stream:
        return _json(builder.whole(generated(waiter.ended())))
    outputs = request.sampling.n * request.prompt_count
    stream = Stream(waiter, builder, outputs=outputs, with_usage=body.with_usage)
    response = sse.event_stream(stream.begin())
    response.call_on_close(stream.close)
    return response


def _origin(endpoint: str) -> dict[str, str]:
    """Returns the metadata that marks jobs of these endpoints."""
    return {"origin": "openai", "endpoint": endpoint}


def _is_forwarded() -> bool:
    """Returns True if another Graftwerk sent the request: it gets local models only, so that no request circulates."""
    return FORWARDED_HEADER in http_request.headers


def _served_models() -> Mapping[str, ServedModel]:
    backend = state().backend
    return {} if backend is None or _is_forwarded() else backend.models()


def _remote_model(model: ServedModel) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by}


def _probe(model: str) -> GenerateRequest:
    return GenerateRequest(kind="generate", prompt="", **split_model(model, SERVED_NAME_PATTERN))


def _local_model(name: str, summary: ModelSummary) -> dict[str, Any]:
    made = summary.created_at or datetime.fromtimestamp((state().store.root / summary.name).stat().st_mtime)
    owner = "graftwerk" if summary.created_at else "local"
    return {"id": name, "object": "model", "created": int(made.timestamp()), "owned_by": owner}


def _base64(vector: list[float]) -> str:
    """Returns little-endian float32 in base64, which the official client requests."""
    return base64.b64encode(pack(f"<{len(vector)}f", *vector)).decode()


def _json(value: Any) -> Response:
    response = Response(json.dumps(value, ensure_ascii=False), mimetype="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response
