"""The bodies that OpenAI's API takes, and the jobs that they ask for."""

import re
import secrets
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from api.openai.errors import InvalidParameter
from services.errors import ModelNotFound
from services.kinds.embed import EmbedRequest
from services.kinds.generate import GenerateRequest
from services.kinds.shared import MAX_STREAMED_OUTPUTS, NO_TOKEN_LIMIT
from services.names import MODEL_NAME_PATTERN, SERVED_NAME_PATTERN, is_reserved
from services.sampling import Sampling
from services.templates import Message

IGNORED = ("user", "safety_identifier", "prompt_cache_key")
"""Parameters that say who asks: they change no answer."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""Parameters that are not offered, and the values with which they ask for nothing."""

NAMES = {"max_new_tokens": "max_tokens", "inputs": "input", "prompts": "prompt"}
"""Our fields that have another name here."""


class Body(BaseModel):
    """The root of all bodies: null is as good as absent, an unknown parameter is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: item
            for name, item in value.items()
            if item is not None and name not in IGNORED and item not in NEUTRAL.get(name, ())
        }


class ModelBody(Body):
    """What is asked of a model, by its name or by `base+adapter[+adapter]`."""

    model: str = Field(min_length=1, max_length=1000, examples=["chinese-alpaca-7b"])

    @property
    def names(self) -> dict[str, Any]:
        """The model and the adapters that are applied on the fly. Raises ModelNotFound."""
        return names_of(self.model)


def names_of(model: str, pattern: str = MODEL_NAME_PATTERN) -> dict[str, Any]:
    """`base+adapter+adapter` as fields of a request; the base is of this pattern.

    Raises ModelNotFound where these can be no names.
    """
    base, *adapters = names = model.split("+")
    patterns = [pattern, *[MODEL_NAME_PATTERN] * len(adapters)]
    fit = all(re.fullmatch(form, name) for form, name in zip(patterns, names, strict=True))
    if not fit or any(map(is_reserved, names)):
        raise ModelNotFound(f"The model {model!r} does not exist.", "GET /v1/models lists what there is.")
    return {"model": base, "adapters": adapters}


class StreamOptions(Body):
    """How to stream."""

    include_usage: bool = Field(default=False, description="A last chunk with the usage.")
    include_obfuscation: bool = Field(default=False, description="Accepted; nothing is padded.")


class SamplingBody(ModelBody):
    """What chat and plain completions have in common. The last four are Graftwerk's own."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    max_tokens: int | None = None
    temperature: float = 1
    top_p: float = 1
    presence_penalty: float = 0
    frequency_penalty: float = 0
    logit_bias: dict[str, float] = {}
    stop: str | list[str] = []
    seed: int | None = None
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1
    template: str | None = Field(default=None, description="A prompt template, alpaca for example.")

    @property
    def names(self) -> dict[str, Any]:
        """The model, which may be another server's, and the adapters. Raises ModelNotFound."""
        return names_of(self.model, SERVED_NAME_PATTERN)

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, *, max_new_tokens: int, logprobs: int | None) -> Sampling:
        """The settings as a job has them.

        A seed is always set: when a worker dies, its successor writes the same text again, and a stream goes on.
        """
        same = ("n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "stop")
        fields = {name: getattr(self, name) for name in (*same, "top_k", "min_p", "repetition_penalty")}
        seed = secrets.randbits(63) if self.seed is None else self.seed
        return Sampling.model_validate(
            fields | {"seed": seed, "max_new_tokens": max_new_tokens, "logprobs": logprobs}
        )

    @model_validator(mode="after")
    def _stream_options_are_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream only")
        return self


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Turn(Body):
    """A message of a conversation; `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def message(self) -> Message:
        """The same as a job has it; parts are joined by a newline."""
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content="\n".join(parts))


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError(
                "max_tokens and max_completion_tokens are the same limit and were given two values"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    def job(self, metadata: dict[str, str]) -> GenerateRequest:
        """The job that answers. Without a limit an answer may fill the model's context."""
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return GenerateRequest(
            kind="generate",
            **self.names,
            messages=[turn.message for turn in self.messages],
            template=self.template,
            sampling=self.sampling(
                max_new_tokens=NO_TOKEN_LIMIT if limit is None else limit, logprobs=logprobs
            ),
            # OpenAI refuses a conversation that is too long: no turn is left out behind its client's back
            fit_context="answer" if limit is None else False,
            metadata=metadata,
        )


def _refuse_token_ids(value: Any) -> Any:
    items = value if isinstance(value, list) else []
    if any(isinstance(item, int | list) for item in items):
        raise ValueError("token ids are not taken here: send the text")
    return value


Texts = Annotated[list[str], Field(min_length=1)]


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    prompt: str | Texts
    max_tokens: int = 16
    logprobs: int | None = None

    _text_only = field_validator("prompt", mode="before")(_refuse_token_ids)

    def job(self, metadata: dict[str, str]) -> GenerateRequest:
        """The job that answers: texts are continued as they stand, unless a template is named."""
        prompt = {"prompt": self.prompt} if isinstance(self.prompt, str) else {"prompts": self.prompt}
        return GenerateRequest.model_validate(
            {
                "kind": "generate",
                **self.names,
                **prompt,
                "template": self.template,
                "sampling": self.sampling(max_new_tokens=self.max_tokens, logprobs=self.logprobs),
                "metadata": metadata,
            }
        )


class EmbeddingBody(ModelBody):
    """`POST /v1/embeddings`."""

    input: str | Texts
    encoding_format: Literal["float", "base64"] = "float"

    _text_only = field_validator("input", mode="before")(_refuse_token_ids)

    def job(self, metadata: dict[str, str]) -> EmbedRequest:
        """The job that answers."""
        inputs = [self.input] if isinstance(self.input, str) else self.input
        return EmbedRequest(kind="embed", **self.names, inputs=inputs, metadata=metadata)


B = TypeVar("B", bound=Body)


def parse(shape: type[B], value: Any) -> B:
    """A body from its JSON. Raises InvalidParameter."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        raise InvalidParameter.of(error, NAMES) from error


def generate_request(body: ChatBody | CompletionBody, metadata: dict[str, str]) -> GenerateRequest:
    """The generate job that a body asks for. Raises InvalidParameter, ModelNotFound."""
    try:
        request = body.job(metadata)
    except ValidationError as error:
        raise InvalidParameter.of(error, NAMES) from error
    answers = request.sampling.n * len(request.prompts or [None])
    if body.stream and answers > MAX_STREAMED_OUTPUTS:
        raise InvalidParameter(
            "stream",
            f"{answers} answers are asked for and at most {MAX_STREAMED_OUTPUTS} are streamed at once",
        )
    return request


def embed_request(body: EmbeddingBody, metadata: dict[str, str]) -> EmbedRequest:
    """The embed job that a body asks for. Raises InvalidParameter, ModelNotFound."""
    try:
        return body.job(metadata)
    except ValidationError as error:
        raise InvalidParameter.of(error, NAMES) from error
