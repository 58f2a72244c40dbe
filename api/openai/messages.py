"""Messages of a conversation as OpenAI's clients send them."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

from api.openai.body import Body, TextOr
from services.templates import CalledFunction, Message, MessageToolCall, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""Roles of OpenAI's API and the role that each has in a job."""

PARTS_LIMIT = 1000
"""Most parts or tool calls of a message."""


class TextPart(Body):
    """Text part of a message; other kinds of parts are refused."""

    ignored: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control"})

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _is_read(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise PydanticCustomError(
                "unread_part",
                "The models here read text: images, audio and files are not read. Send parts of type text",
            )
        return value


class FunctionCall(BaseModel):
    """Function that an assistant called, with its arguments as JSON text."""

    name: str
    arguments: str = ""

    @property
    def called(self) -> CalledFunction:
        """The function in a job."""
        return CalledFunction(name=self.name, arguments=self.arguments)


class ToolCall(BaseModel):
    """Tool call of an assistant's turn."""

    id: str | None = None
    function: FunctionCall

    @property
    def call(self) -> MessageToolCall:
        """The call in a job."""
        return MessageToolCall(id=self.id, function=self.function.called)


class ChatMessage(Body):
    """One message of a conversation, including tool calls and results of conversations held with other models."""

    ignored: ClassVar[frozenset[str]] = frozenset({"annotations", "cache_control", "refusal"})

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: TextOr[Annotated[list[TextPart], Field(max_length=PARTS_LIMIT)]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] = Field(default=[], max_length=PARTS_LIMIT)
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = Field(
        default=None, validation_alias=AliasChoices("reasoning_content", "reasoning")
    )

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self._calls):
            raise ValueError(
                "A message needs content; only an assistant's message with tool calls may have none"
            )
        return self

    @property
    def _calls(self) -> list[MessageToolCall]:
        last = [] if self.function_call is None else [MessageToolCall(function=self.function_call.called)]
        return [*(tool_call.call for tool_call in self.tool_calls), *last]

    @property
    def message(self) -> Message:
        """The turn of the conversation; parts are joined by newlines. Names of people are left out."""
        content = (
            [self.content] if isinstance(self.content, str) else [part.text for part in self.content or []]
        )
        role = ROLES[self.role]
        is_tool, is_assistant = role == "tool", role == "assistant"
        return Message(
            role=role,
            content="\n".join(content),
            tool_calls=(self._calls or None) if is_assistant else None,
            reasoning_content=self.reasoning_content if is_assistant else None,
            tool_call_id=self.tool_call_id if is_tool else None,
            name=self.name if is_tool else None,
        )
