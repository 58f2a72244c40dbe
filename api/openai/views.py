"""The endpoints under /v1."""

import base64
from struct import pack

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag
from pydantic import BaseModel

from api.openai import errors
from api.openai.body import parse
from api.openai.fixed_model import fixed_model, read_body_with_model
from api.openai.job_waiter import generated, result_of, submit
from api.openai.models import find_entry, is_forwarded, list_entries
from api.openai.parameters import ignored_parameters
from api.openai.responses import ResponseBuilder, extension, json_object
from api.openai.schemas import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    embed_request,
    generate_request,
)
from api.openai.streaming import Chunks, event_stream
from api.openapi import SECURITY, body_of, object_of
from api.state import state
from services.backend import SERVICE_HEADER
from services.kinds.embed import EmbedResult

REFUSALS = object_of(401, 403, 404, 429, 500)
WORK_REFUSALS = object_of(400, 401, 403, 404, 413, 415, 429, 500, 503)

TAG = Tag(
    name="openai",
    description="All of these are also served below `/m/{model}`, where the model of the address is meant.",
)

api = APIBlueprint("openai", __name__, url_prefix="/v1", abp_tags=[TAG], abp_security=SECURITY)
errors.register(api)


class ModelPath(BaseModel):
    """Path parameter `model`: a model's name, or `base+adapter`."""

    model: str


@api.get("/models", responses={**object_of(200), **REFUSALS})
def list_models() -> Response:
    """List the models that can generate.

    Models of the volume come first, each followed by `base+adapter` for the adapters whose recorded base it is, then those
    of the server of `GENERATE_BACKEND_URL`. `max_model_len` is the context in tokens.
    """
    model = fixed_model()
    entries = list_entries() if model is None else [find_entry(model)]
    response = json_object({"object": "list", "data": entries})
    if is_forwarded():
        response.headers[SERVICE_HEADER] = state().queue.identity()
    return response


@api.get("/models/<path:model>", responses={**object_of(200), **REFUSALS})
def retrieve_model(path: ModelPath) -> Response:
    """Get a model by its name or by `base+adapter`."""
    return json_object(find_entry(path.model))


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
    value = read_body_with_model()
    body = parse(EmbeddingBody, value)
    job = submit(state(), embed_request(body, _origin("embeddings"))).ended()
    result = result_of(job, EmbedResult)
    encode = _base64 if body.encoding_format == "base64" else list
    data = [
        {"object": "embedding", "index": index, "embedding": encode(vector)}
        for index, vector in enumerate(result.embeddings)
    ]
    usage = result.usage.model_dump(exclude_unset=True)
    own = {
        "model": body.model,
        "usage": usage,
        "graftwerk": extension(job, ignored_parameters(value), result.engine),
    }
    return json_object({"object": "list", "data": data} | own)


def _complete(body_type: type[ChatBody] | type[CompletionBody], endpoint: str) -> Response:
    value = read_body_with_model()
    body = parse(body_type, value)
    request = generate_request(body, _origin(endpoint))
    if is_forwarded():
        request = request.model_copy(update={"forward": False})
    waiter = submit(state(), request)
    builder = ResponseBuilder(
        job=waiter.job,
        model=body.model,
        is_chat=isinstance(body, ChatBody),
        echo=isinstance(body, CompletionBody) and body.echo,
        ignored=[*ignored_parameters(value), *body.left_out],
    )
    if not body.stream:
        return json_object(builder.whole(generated(waiter.ended())))
    outputs = request.sampling.n * request.prompt_count
    return event_stream(waiter, Chunks(builder, outputs=outputs, with_usage=body.with_usage))


def _origin(endpoint: str) -> dict[str, str]:
    """Returns the metadata that marks jobs of these endpoints."""
    return {"origin": "openai", "endpoint": endpoint}


def _base64(vector: list[float]) -> str:
    """Returns little-endian float32 in base64, which the official client requests."""
    return base64.b64encode(pack(f"<{len(vector)}f", *vector)).decode()
