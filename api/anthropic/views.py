"""The endpoints `/v1/messages`."""

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from flask_openapi3.models.tag import Tag

from api.anthropic import errors
from api.anthropic.body import NAMES, CountTokensBody, MessagesBody
from api.anthropic.events import MessageEvents
from api.anthropic.message import MessageBuilder, usage_of
from api.openai.body import parse
from api.openai.fixed_model import read_body_with_model
from api.openai.job_waiter import generated, result_of, submit
from api.openai.models import is_forwarded
from api.openai.responses import extension, json_object
from api.openai.schemas import ChatBody, generate_request
from api.openai.streaming import event_stream
from api.openai.views import WORK_REFUSALS
from api.openapi import SECURITY, body_of, object_of
from api.state import state
from services.errors import InvalidName, ModelNotFound
from services.generate_engines import Engine
from services.kinds.generate import GenerateRequest
from services.kinds.tokenize import CONVERSATION_FIELDS, TokenizeRequest, TokenizeResult

METADATA = {"origin": "anthropic", "endpoint": "messages"}
"""Metadata of the jobs of these endpoints."""

TAG = Tag(
    name="anthropic",
    description="Anthropic's API. Also served below `/m/{model}`, where the model of the address is meant.",
)

api = APIBlueprint("anthropic", __name__, url_prefix="/v1", abp_tags=[TAG], abp_security=SECURITY)
errors.handle(api)


@api.post(
    "/messages", openapi_extensions=body_of(MessagesBody), responses={**object_of(200), **WORK_REFUSALS}
)
def create_message() -> Response:
    """Generate the next message of a conversation.

    A `generate` job produces it and is canceled when the client disconnects. If the last message is the assistant's, its
    text is continued. With `stream` the message arrives as server-sent events.
    """
    value = read_body_with_model()
    body = parse(MessagesBody, value, NAMES)
    waiter = submit(state(), _job_request(body))
    message = MessageBuilder(
        job=waiter.job,
        model=body.model,
        stop_sequences=body.stop_sequences,
        max_tokens=body.max_tokens,
        ignored=body.left_out(value),
    )
    if body.stream:
        return event_stream(waiter, MessageEvents(message))
    return json_object(message.whole(generated(waiter.ended())))


@api.post(
    "/messages/count_tokens",
    openapi_extensions=body_of(CountTokensBody),
    responses={**object_of(200), **WORK_REFUSALS},
)
def count_tokens() -> Response:
    """Count the tokens of a conversation as the model reads it, with its template and tools.

    A `tokenize` job counts them, for which no weights are loaded, with the tokenizer of the model's folder. Of a model that only
    another server has, that server counts them in a `generate` job of one token.
    """
    value = read_body_with_model()
    body = parse(CountTokensBody, value, NAMES)
    request = _job_request(body)
    engine: Engine | None = "graftwerk"
    if _has_tokenizer(request.model) or state().served(request) is None:
        job = submit(state(), _tokenize_request(request)).ended()
        tokenized = result_of(job, TokenizeResult)
        (token_ids,) = tokenized.token_ids or [[]]
        count, more = len(token_ids), tokenized.ignored
    else:
        sampling = request.sampling.model_copy(update={"max_new_tokens": 1})
        job = submit(state(), request.model_copy(update={"sampling": sampling})).ended()
        result = generated(job)
        count, more, engine = usage_of(result.outputs[0])["input_tokens"], result.ignored, result.engine
    ignored = list(dict.fromkeys([*body.left_out(value), *(more or [])]))
    return json_object({"input_tokens": count, "graftwerk": extension(job, ignored, engine)})


def _has_tokenizer(name: str) -> bool:
    """Returns True if a folder of the volume with this name has a tokenizer."""
    try:
        summary = state().models.describe(name)
    except (ModelNotFound, InvalidName):
        return False
    return summary.kind == "gguf" or summary.tokenizer is not None


def _tokenize_request(request: GenerateRequest) -> TokenizeRequest:
    names = ("model", "adapters", "messages", "metadata", *CONVERSATION_FIELDS)
    return TokenizeRequest(kind="tokenize", **{name: getattr(request, name) for name in names})


def _job_request(body: CountTokensBody | MessagesBody) -> GenerateRequest:
    request = generate_request(parse(ChatBody, body.chat(), NAMES), METADATA, NAMES)
    return request.model_copy(update={"forward": request.forward and not is_forwarded()})
