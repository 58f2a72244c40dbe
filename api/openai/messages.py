"""Messages of a conversation as OpenAI's clients send them."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, Field, model_validator

from api.openai.body import Body
from services.templates import Message, Role

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


class FunctionCall(BaseModel):
    """Function that an assistant called, with its arguments as JSON text."""

    name: str
    arguments: str = ""

    @property
    def text(self) -> str:
        """The call as the prompt spells it."""
        return f"{self.name}({self.arguments})"


class ToolCall(BaseModel):
    """Tool call of an assistant's turn."""

    function: FunctionCall


class ChatMessage(Body):
    """One message of a conversation, including tool calls and results of conversations held with other models."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        {"annotations", "cache_control", "name", "reasoning", "reasoning_content", "refusal", "tool_call_id"}
    )

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(max_length=PARTS_LIMIT)] | None = None
    tool_calls: list[ToolCall] = Field(default=[], max_length=PARTS_LIMIT)
    function_call: FunctionCall | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.content is None and not (self.role == "assistant" and self._calls):
            raise ValueError(
                "A message needs content; only an assistant's message with tool calls may have none"
            )
        return self

    @property
    def _calls(self) -> list[FunctionCall]:
        last = [] if self.function_call is None else [self.function_call]
        return [call.function for call in self.tool_calls] + last

    @property
    def message(self) -> Message:
        """The turn of the conversation; parts and tool calls are joined by newlines."""
        content = (
            [self.content] if isinstance(self.content, str) else [part.text for part in self.content or []]
        )
        return Message(
            role=ROLES[self.role], content="\n".join([*content, *(call.text for call in self._calls)])
        )
