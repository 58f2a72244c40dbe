"""Body of `POST /v1/responses`, and the chat that it asks for."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from api.openai.body import Body, TextOr
from api.openai.responses_api.items import Items, Json, chat_messages
from api.openai.responses_api.tools import Tool, ToolChoice, chat_tools, functions
from api.openai.schemas import ModelBody
from services.kinds.tools import other_types

LOGPROBS = "message.output_text.logprobs"
"""Value of `include` that requests log-probabilities."""

TEXT_LIMIT = 1_000_000
"""Most characters of the instructions."""

NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "max_new_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""Parameters of a chat, and fields of a job, that have another name here."""

LIKE_CHATS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "template")
"""Parameters with the same name and meaning as in `POST /v1/chat/completions`."""

WITHOUT_EFFECT = (
    "client_metadata", "moderation", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "safety_identifier", "service_tier", "stream_options", "user",
)  # fmt: skip
"""Parameters that are left out, whichever value they have."""

Pairs = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class TextFormat(Body):
    """Form of the text, with the schema's fields next to the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @property
    def response_format(self) -> Json:
        """The same as the `response_format` of a chat."""
        if self.type != "json_schema":
            return {"type": self.type}
        given = {"name": self.name, "description": self.description, "strict": self.strict}
        schema = {name: value for name, value in given.items() if value is not None}
        return {"type": self.type, "json_schema": schema | {"schema": self.schema_}}

    @model_validator(mode="after")
    def _schema_belongs_to_its_type(self) -> Self:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise ValueError('schema belongs to the type "json_schema", which needs it')
        return self


class TextOptions(Body):
    """Options of the text."""

    ignored: ClassVar[frozenset[str]] = frozenset({"verbosity"})

    format: TextFormat | None = None


class ResponsesBody(ModelBody):
    """Body of `POST /v1/responses`. The last six parameters are extensions of Graftwerk."""

    ignored: ClassVar[frozenset[str]] = frozenset(WITHOUT_EFFECT)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    input: TextOr[Items]
    instructions: str | None = Field(
        default=None,
        max_length=TEXT_LIMIT,
        description="A system text; that of an earlier response does not count.",
    )
    previous_response_id: str | None = Field(
        default=None, max_length=64, description="A kept response whose conversation is continued."
    )
    store: bool = Field(
        default=True, description="false: the response can neither be retrieved nor continued."
    )
    background: bool = Field(
        default=False, description="Answer at once; the response is retrieved when it is completed."
    )
    stream: bool = False
    max_output_tokens: int | None = Field(
        default=None,
        description="Upper bound of the new tokens; lowered to the room that the context leaves.",
    )
    temperature: float = 1
    top_p: float = 1
    text: TextOptions = TextOptions()
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[str] = Field(default=[], max_length=100)
    truncation: Literal["disabled", "auto"] = Field(
        default="disabled", description='"auto" drops the oldest turns of a conversation that is too long.'
    )
    tools: list[Tool] = Field(default=[], max_length=1000)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = Field(
        default=None, description="Counts calls of tools that the server runs; there are no such tools here."
    )
    reasoning: dict[str, Any] | None = None
    metadata: Pairs = Field(default={}, max_length=16)
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1
    seed: int | None = None
    template: str | None = Field(default=None, description="A prompt template, alpaca for example.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="Variables for the model's own chat template."
    )

    @model_validator(mode="after")
    def _background_is_kept(self) -> Self:
        if self.background and not self.store:
            raise ValueError("background needs store to be true: the response is retrieved later")
        return self

    @property
    def asks_logprobs(self) -> bool:
        """True if the response has log-probabilities."""
        return LOGPROBS in self.include or self.top_logprobs is not None

    @property
    def format(self) -> TextFormat:
        """The form of the text."""
        return self.text.format or TextFormat(type="text")

    def left_out(self, value: Json) -> list[str]:
        """Returns the names of the parameters of this body, as it was sent, that have no effect."""
        found = [name for name in WITHOUT_EFFECT if value.get(name) is not None]
        found += ["include"] if set(self.include) - {LOGPROBS} else []
        found += other_types(self.tools)
        return found + (["reasoning"] if self.reasoning and not self._without_thinking else [])

    def echo(self) -> Json:
        """Returns the parameters that a response repeats."""
        names = (
            "background", "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "parallel_tool_calls",
            "previous_response_id", "reasoning", "store", "temperature", "top_p", "tool_choice", "truncation",
        )  # fmt: skip
        text = {"format": self.format.model_dump(by_alias=True, exclude_none=True)}
        own: Json = {"text": text, "top_logprobs": self.top_logprobs or 0}
        own["tools"] = [tool.model_dump() for tool in functions(self.tools)]
        return self.model_dump(include=set(names)) | own

    def chat(self) -> Json:
        """Returns the body of the chat, with the input of this request alone."""
        asked: Json = {
            "model": self.model,
            "messages": chat_messages(self.input),
            "max_completion_tokens": self.max_output_tokens,
            "parallel_tool_calls": None if self.parallel_tool_calls else False,
            "logprobs": self.asks_logprobs,
            "top_logprobs": self.top_logprobs,
            "response_format": self.format.response_format,
        }
        like_chats = {name: getattr(self, name) for name in LIKE_CHATS}
        return asked | like_chats | chat_tools(self.tools, self.tool_choice) | self._thinking()

    @property
    def _without_thinking(self) -> bool:
        return (self.reasoning or {}).get("effort") == "none"

    def _thinking(self) -> Json:
        variables = {"enable_thinking": False} if self._without_thinking else {}
        variables |= self.chat_template_kwargs or {}
        return {"chat_template_kwargs": variables or None}
