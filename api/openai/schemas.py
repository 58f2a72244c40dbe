"""Request bodies of the endpoints under /v1, and the jobs that they become."""

import re
import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from api.openai.body import NAMES, Body
from api.openai.errors import InvalidParameter
from api.openai.messages import ChatMessage
from services.errors import ModelNotFound
from services.kinds.embed import EmbedRequest
from services.kinds.generate import GenerateRequest
from services.kinds.guidance import ResponseFormat
from services.kinds.shared import (
    MAX_STREAMED_OUTPUTS,
    MESSAGES_LIMIT,
    NO_TOKEN_LIMIT,
    PROMPTS_LIMIT,
    TokenIds,
)
from services.kinds.tools import TOOLS_LIMIT, AnyTool, NamedTool, Tool, other_types
from services.names import MODEL_NAME_PATTERN, SERVED_NAME_PATTERN, is_reserved
from services.sampling import SEED_BITS, STOP_LIMIT, STOP_TOKENS_LIMIT, Sampling

T = TypeVar("T")

LIKE_OURS = (
    "n", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "stop",
    "top_k", "min_p", "repetition_penalty", "stop_token_ids",
)  # fmt: skip
"""Sampling parameters that have the same name and meaning in a job."""


class ModelBody(Body):
    """Body of a request to a model, which is named by its name or as `base+adapter[+adapter]`."""

    model: str = Field(min_length=1, max_length=1000, examples=["chinese-alpaca-7b"])

    @property
    def names(self) -> dict[str, Any]:
        """The fields `model` and `adapters` of a job. Raises ModelNotFound."""
        return split_model(self.model)


def split_model(model: str, pattern: str = MODEL_NAME_PATTERN) -> dict[str, Any]:
    """Returns `base+adapter+adapter` as the fields `model` and `adapters` of a job; the base matches `pattern`.

    Raises:
        ModelNotFound: these cannot be names of models.
    """
    base, *adapters = names = model.split("+")
    patterns = [pattern, *[MODEL_NAME_PATTERN] * len(adapters)]
    fit = all(re.fullmatch(form, name) for form, name in zip(patterns, names, strict=True))
    if not fit or any(map(is_reserved, names)):
        raise ModelNotFound(f"The model {model!r} does not exist.", "GET /v1/models lists the models.")
    return {"model": base, "adapters": adapters}


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool = Field(default=False, description="Adds a last chunk with the usage.")


class SamplingBody(ModelBody):
    """Parameters of chat and plain completions. `stop_token_ids` and the last five are extensions of Graftwerk."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    max_tokens: int | None = Field(
        default=None,
        description="Upper bound of the new tokens; lowered to the room that the context leaves.",
    )
    temperature: float = 1
    top_p: float = 1
    presence_penalty: float = 0
    frequency_penalty: float = 0
    logit_bias: dict[str, float] = Field(default={})
    stop: str | Annotated[list[str], Field(max_length=STOP_LIMIT)] = Field(default=[])
    best_of: int | None = Field(default=None, description="Accepted where it selects nothing: up to `n`.")
    stop_token_ids: list[int] | None = Field(
        default=None, max_length=STOP_TOKENS_LIMIT, description="Tokens that end an output."
    )
    seed: int | None = None
    response_format: ResponseFormat | None = Field(
        default=None, description="Text, any JSON object, or JSON that a schema admits."
    )
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1
    template: str | None = Field(default=None, description="A prompt template, alpaca for example.")
    guided_regex: str | None = Field(
        default=None, description="A regular expression that each output matches as a whole."
    )

    @property
    def names(self) -> dict[str, Any]:
        """The fields `model` and `adapters` of a job; the model may be another server's. Raises ModelNotFound."""
        return split_model(self.model, SERVED_NAME_PATTERN)

    @property
    def left_out(self) -> list[str]:
        """Names of the parameters that are used in part."""
        return []

    @property
    def with_usage(self) -> bool:
        """True if a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def field_names(self) -> Mapping[str, str]:
        """Fields of a job whose parameter has another name here."""
        return NAMES

    def sampling(self, *, limit: int, logprobs: int | None) -> Sampling:
        """Returns the sampling options of the job; `limit` is an upper bound, so a larger one is not an error.

        A seed is always set: when a worker dies, its successor generates the same text and a stream continues.
        """
        seed = secrets.randbits(SEED_BITS) if self.seed is None else self.seed
        fields = {name: getattr(self, name) for name in LIKE_OURS}
        return Sampling.model_validate(
            fields | {"seed": seed, "max_new_tokens": min(limit, NO_TOKEN_LIMIT), "logprobs": logprobs}
        )

    @model_validator(mode="after")
    def _best_of_selects_nothing(self) -> Self:
        if self.best_of is not None and self.best_of > max(self.n, 1) and self.temperature > 0:
            raise ValueError(
                f"best_of = {self.best_of} would select {self.n} of several outputs, which is not supported: leave it out, or "
                "set temperature to 0, with which all outputs are equal"
            )
        return self

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is allowed with stream only")
        return self


class ChatBody(SamplingBody):
    """Body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MESSAGES_LIMIT)
    tools: list[AnyTool] = Field(
        default=[], max_length=TOOLS_LIMIT, description="Functions that the model may call."
    )
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None,
        description='Variables for the model\'s own chat template: `{"enable_thinking": false}`, for example.',
    )
    max_completion_tokens: int | None = Field(default=None, description="The newer name of `max_tokens`.")
    logprobs: bool = False
    top_logprobs: int | None = None

    @model_validator(mode="after")
    def _without_contradictions(self) -> Self:
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            raise ValueError("max_tokens and max_completion_tokens are the same limit and have two values")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def left_out(self) -> list[str]:
        """Names of the tools that are not functions, `tools.web_search` for example."""
        return other_types(self.tools)

    @property
    def field_names(self) -> Mapping[str, str]:
        """Fields of a job whose parameter has another name here; the limit has the name that was used."""
        names = {**NAMES, "logprobs": "top_logprobs"}
        return (
            names
            if self.max_completion_tokens is None
            else names | {"max_new_tokens": "max_completion_tokens"}
        )

    def request(self, metadata: dict[str, str]) -> GenerateRequest:
        """Returns the job's request. Without a limit the output may fill the model's context."""
        limits = (self.max_completion_tokens, self.max_tokens, NO_TOKEN_LIMIT)
        limit = next(limit for limit in limits if limit is not None)
        tools = [tool for tool in self.tools if isinstance(tool, Tool)]
        if not tools and self.tool_choice not in (None, "auto", "none"):
            raise InvalidParameter(
                "tool_choice",
                "a tool call cannot be required: tools has no function. Send tools, or leave tool_choice out.",
            )
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return GenerateRequest(
            kind="generate",
            **self.names,
            messages=[message.message for message in self.messages],
            tools=tools or None,
            tool_choice=self.tool_choice if tools or self.tool_choice not in ("auto", "none") else None,
            parallel_tool_calls=self.parallel_tool_calls,
            chat_template_kwargs=self.chat_template_kwargs,
            template=self.template,
            sampling=self.sampling(limit=limit, logprobs=logprobs),
            response_format=self.response_format,
            guided_regex=self.guided_regex,
            # OpenAI refuses a conversation that is too long: no turn is dropped without the client's knowledge
            fit_context="answer",
            metadata=metadata,
        )


def _tag_of_texts(value: Any) -> str:
    """Returns the tag of a text, of texts, of token ids or of lists of them, by the first item."""
    if not isinstance(value, list):
        return "[text]"
    first = value[0] if value else ""
    return "[of lists]" if isinstance(first, list) else "[of ids]" if isinstance(first, int) else "[list]"


Text = TypeVar("Text", bound=str)

Texts = Annotated[
    Annotated[Text, Tag("[text]")]
    | Annotated[list[Text], Field(min_length=1, max_length=PROMPTS_LIMIT), Tag("[list]")]
    | Annotated[TokenIds, Tag("[of ids]")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=PROMPTS_LIMIT), Tag("[of lists]")],
    Discriminator(_tag_of_texts),
]
"""A text or several, as text or as token ids: what is wrong is reported for the form that was sent."""

NonEmpty = Annotated[str, Field(min_length=1)]


class CompletionBody(SamplingBody):
    """Body of `POST /v1/completions`."""

    prompt: Texts[str]
    echo: bool = Field(
        default=False,
        description="The text begins with the prompt; with `logprobs` those of the prompt's tokens come first.",
    )
    max_tokens: int = Field(
        default=16, description="Upper bound of the new tokens; lowered to the room that the context leaves."
    )
    logprobs: int | None = None

    @model_validator(mode="after")
    def _echo_is_not_streamed(self) -> Self:
        if self.echo and self.stream:
            raise ValueError("echo is not available with stream: leave one of them out")
        return self

    @property
    def prompt_field(self) -> str:
        """The field of a job that takes this prompt."""
        if isinstance(self.prompt, str):
            return "prompt"
        return "prompts" if isinstance(self.prompt[0], str) else "prompt_token_ids"

    def request(self, metadata: dict[str, str]) -> GenerateRequest:
        """Returns the job's request: texts are continued unchanged unless a template is named."""
        return GenerateRequest.model_validate(
            {
                "kind": "generate",
                **self.names,
                self.prompt_field: self.prompt,
                "score_prompt": self.echo and self.logprobs is not None,
                "template": self.template,
                "sampling": self.sampling(limit=self.max_tokens, logprobs=self.logprobs),
                "response_format": self.response_format,
                "guided_regex": self.guided_regex,
                "fit_context": "answer",
                "metadata": metadata,
            }
        )


class EmbeddingBody(ModelBody):
    """Body of `POST /v1/embeddings`."""

    input: Texts[NonEmpty]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        default=None, description="Length of the vectors: their first numbers, scaled to length 1 again."
    )

    def request(self, metadata: dict[str, str]) -> EmbedRequest:
        """Returns the job's request."""
        is_one = isinstance(self.input, str) or isinstance(self.input[0], int)
        inputs = [self.input] if is_one else self.input
        return EmbedRequest.model_validate(
            {
                "kind": "embed",
                **self.names,
                "inputs": inputs,
                "dimensions": self.dimensions,
                "metadata": metadata,
            }
        )


def generate_request(
    body: ChatBody | CompletionBody, metadata: dict[str, str], names: Mapping[str, str] | None = None
) -> GenerateRequest:
    """Returns the request of a generate job; `names` are the parameters' names where not those of the body.

    Raises:
        InvalidParameter, ModelNotFound: a parameter is wrong.
    """
    request = _named_here(lambda: body.request(metadata), body.field_names if names is None else names)
    outputs = request.sampling.n * request.prompt_count
    if body.stream and outputs > MAX_STREAMED_OUTPUTS:
        raise InvalidParameter(
            "stream", f"{outputs} outputs are requested; at most {MAX_STREAMED_OUTPUTS} are streamed at once."
        )
    return request


def embed_request(body: EmbeddingBody, metadata: dict[str, str]) -> EmbedRequest:
    """Returns the request of an embed job. Raises InvalidParameter, ModelNotFound."""
    return _named_here(lambda: body.request(metadata), NAMES)


def _named_here(build: Callable[[], T], names: Mapping[str, str]) -> T:
    """Returns what `build` returns; what the job's request refuses is reported by the parameters' names."""
    try:
        return build()
    except ValidationError as error:
        raise InvalidParameter.of(error, names) from error
