"""Endpoints of a model's tokenizer next to /v1, under vLLM's names, as lm-eval's remote tokenizer uses them."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from flask import Response
from flask_openapi3.blueprint import APIBlueprint
from pydantic import BaseModel, Field, ValidationError, model_validator

from api.openai import errors
from api.openai.body import Body, parse
from api.openai.errors import InvalidParameter
from api.openai.fixed_model import fixed_model, read_body_with_model
from api.openai.job_waiter import result_of, submit
from api.openai.messages import ChatMessage
from api.openai.models import context_length, generating_models
from api.openai.parameters import ignored_parameters
from api.openai.responses import extension, json_object
from api.openai.schemas import split_model
from api.openai.views import TAG
from api.openapi import SECURITY, body_of, object_of
from api.state import state
from services.bounded_text import listed
from services.jobs.status import Job
from services.kinds.shared import MESSAGES_LIMIT
from services.kinds.tokenize import TokenIdList, TokenizeRequest, TokenizeResult
from services.kinds.tools import TOOLS_LIMIT, AnyTool, NamedTool

REFUSALS = object_of(400, 401, 403, 404, 409, 429, 500, 503)
BODY_REFUSALS = object_of(413, 415)

MODEL = Field(
    default=None,
    max_length=1000,
    description="A model, or `base+adapter`; optional if only one model can generate.",
)

api = APIBlueprint("tokenizer", __name__, abp_tags=[TAG], abp_security=SECURITY)
errors.handle(api)


class TokenizeBody(Body):
    """Body of `POST /tokenize`."""

    model: str | None = MODEL
    prompt: str | None = Field(default=None, max_length=1_000_000)
    messages: list[ChatMessage] | None = Field(
        default=None,
        min_length=1,
        max_length=MESSAGES_LIMIT,
        description="In place of a prompt: a conversation, as `POST /v1/chat/completions` has it.",
    )
    tools: list[AnyTool] = Field(default=[], max_length=TOOLS_LIMIT)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = Field(
        default=True, description="false: a conversation ends with its last message."
    )
    add_special_tokens: bool = Field(
        default=True,
        description="Begin as the model's prompts begin, with the token for that; a conversation's template does so itself.",
    )
    return_token_strs: bool = Field(default=False, description="Return `token_strs` too.")

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages is needed")
        return self

    @property
    def input(self) -> dict[str, Any]:
        """The fields of the job that say what is tokenized."""
        if self.messages is None:
            own: dict[str, Any] = {"add_special_tokens": self.add_special_tokens, "parse_special": True}
            return {"texts": [self.prompt]} | own
        own = {name: getattr(self, name) for name in ("tool_choice", "template", "chat_template_kwargs")}
        own["messages"] = [message.message for message in self.messages]
        own["add_generation_prompt"] = None if self.add_generation_prompt else False
        return own | {"tools": self.tools or None}


class DetokenizeBody(Body):
    """Body of `POST /detokenize`."""

    model: str | None = MODEL
    tokens: TokenIdList


class TokenizerQuery(BaseModel):
    """Query parameter `model`."""

    model: str | None = Field(
        default=None, description="A model, or `base+adapter`; optional if only one model can generate."
    )


@api.post(
    "/tokenize",
    openapi_extensions=body_of(TokenizeBody),
    responses={**object_of(200), **REFUSALS, **BODY_REFUSALS},
)
def tokenize() -> Response:
    """Turn a text or a conversation into token ids.

    Special tokens that the text spells, `</s>` for example, become those tokens, as in vLLM. The ids of a conversation are the
    prompt that a chat has.
    """
    value = read_body_with_model()
    body = parse(TokenizeBody, value)
    names = _names(body.model)
    job, result = _run(names, **body.input, return_pieces=body.return_token_strs)
    (tokens,) = result.token_ids or [[]]
    longest = context_length(state().models.describe(names["model"]))
    found: dict[str, Any] = {"count": len(tokens), "max_model_len": longest, "tokens": tokens}
    if result.pieces is not None:
        found["token_strs"] = result.pieces[0]
    return json_object(found | _extension(job, value, result.ignored or []))


@api.post(
    "/detokenize",
    openapi_extensions=body_of(DetokenizeBody),
    responses={**object_of(200), **REFUSALS, **BODY_REFUSALS},
)
def detokenize() -> Response:
    """Turn token ids into a text; special tokens are written out."""
    value = read_body_with_model()
    body = parse(DetokenizeBody, value)
    job, result = _run(_names(body.model), token_ids=[body.tokens])
    (text,) = result.texts or [""]
    return json_object({"prompt": text} | _extension(job, value))


@api.get("/tokenizer_info", responses={**object_of(200), **REFUSALS})
def tokenizer_info(query: TokenizerQuery) -> Response:
    """Get a tokenizer's tokens with a role, its size, and the model's own chat template; null for what it lacks."""
    names = _names(fixed_model() or query.model)
    job, result = _run(names, texts=[""])
    facts = result.tokenizer.model_dump(mode="json")
    return json_object(
        {"model": "+".join([names["model"], *names["adapters"]]), **facts} | _extension(job, {})
    )


def _run(names: dict[str, Any], **fields: Any) -> tuple[Job, TokenizeResult]:
    """Returns a job that has ended, and its result, for the client of the current request. Raises InvalidParameter and what the job raises."""
    metadata = {"origin": "openai", "endpoint": "tokenizer"}
    try:
        request = TokenizeRequest.model_validate(
            {"kind": "tokenize", **names, **fields, "metadata": metadata}
        )
    except ValidationError as error:
        raise InvalidParameter.of(error, {"adapters": "model"}) from error
    job = submit(state(), request).ended()
    return job, result_of(job, TokenizeResult)


def _extension(job: Job, body: Any, ignored: Sequence[str] = ()) -> dict[str, Any]:
    return {"graftwerk": extension(job, [*ignored_parameters(body), *ignored], "graftwerk")}


def _names(model: str | None) -> dict[str, Any]:
    """Returns the fields `model` and `adapters` of a job; without a model, the only one that can generate.

    Raises:
        ModelNotFound: these cannot be names of models.
        InvalidParameter: no model is named, and not exactly one can generate.
    """
    if model is not None:
        return split_model(model)
    found = generating_models()
    if len(found) != 1:
        names = f": {listed(found)}" if found else ""
        raise InvalidParameter(
            "model",
            f"No model is named, and {len(found)} models can generate{names}. Send model, or use /m/MODEL/tokenize.",
        )
    return split_model(found[0])
