"""Messages of a conversation, and the check that a text can be encoded."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from services.errors import InvalidText
from services.validation import is_none

Role = Literal["system", "user", "assistant", "tool"]

MESSAGE_LIMIT = 1_000_000
"""Maximum number of characters of one message."""


CALLS_LIMIT = 1000
"""Most calls of one message."""


class CalledFunction(BaseModel):
    """Function that an assistant called, and its arguments as JSON text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=256)
    arguments: str = Field(default="", max_length=MESSAGE_LIMIT)


class MessageToolCall(BaseModel):
    """Tool call in an assistant's message, in OpenAI's form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str | None = Field(default=None, max_length=256, exclude_if=is_none)
    type: Literal["function"] = "function"
    function: CalledFunction

    @property
    def text(self) -> str:
        """The call as prompts spell it whose template has no form for calls."""
        return f"{self.function.name}({self.function.arguments})"


class Message(BaseModel):
    """One message of a conversation. The content may be empty, and absent where an assistant called tools."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role = Field(
        description="Author of the message: system, user, assistant, or tool for the result of a tool."
    )
    content: str = Field(description="Text of the message.", json_schema_extra={"maxLength": MESSAGE_LIMIT})

    tool_calls: list[MessageToolCall] | None = Field(
        default=None,
        max_length=CALLS_LIMIT,
        exclude_if=is_none,
        description="Calls of an assistant's message.",
    )
    tool_call_id: str | None = Field(
        default=None,
        max_length=256,
        exclude_if=is_none,
        description="Call that a message of role `tool` has the result of.",
    )
    name: str | None = Field(
        default=None,
        max_length=256,
        exclude_if=is_none,
        description="Tool of a message of role `tool`.",
    )
    reasoning_content: str | None = Field(
        default=None,
        exclude_if=is_none,
        description="Thinking of an assistant's message; most templates leave that of earlier turns out.",
        json_schema_extra={"maxLength": MESSAGE_LIMIT},
    )

    @model_validator(mode="before")
    @classmethod
    def _content_next_to_calls(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("tool_calls") and value.get("content") is None:
            return {**value, "content": ""}
        return value

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> "Message":
        given = {
            "assistant": ("tool_calls", "reasoning_content"),
            "tool": ("tool_call_id", "name"),
        }
        for role, names in given.items():
            found = next((name for name in names if getattr(self, name) is not None), None)
            if found is not None and self.role != role:
                raise ValueError(
                    f"{found} belongs to messages of role {role}, and this one is of {self.role}"
                )
        return self

    @property
    def texts(self) -> list[str]:
        """All texts of the message."""
        calls = [
            text for call in self.tool_calls or [] for text in (call.function.name, call.function.arguments)
        ]
        return [
            text
            for text in (self.content, self.reasoning_content, *calls, self.name, self.tool_call_id)
            if text
        ]

    @field_validator("content", "reasoning_content")
    @classmethod
    def _check_length(cls, content: str | None) -> str | None:
        # Not max_length: pydantic would then refuse lone surrogates with its own message, see check_text.
        if content is not None and len(content) > MESSAGE_LIMIT:
            raise ValueError(f"at most {MESSAGE_LIMIT} characters are accepted, found {len(content)}")
        return content


def check_text(text: str) -> None:
    """Refuses text that no tokenizer can encode.

    Lone surrogates come from terminals in which backspace removed half of a character.

    Raises:
        InvalidText: the text has a lone surrogate; the message gives the position of the first one.
    """
    for position, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise InvalidText(
                f"The text has a lone surrogate (U+{ord(character):04X}) at position {position}: "
                "half of a character, which cannot be encoded as UTF-8.",
                "Remove or retype that character.",
            )


def merged(messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with neighbours of the same role joined by a newline. Raises InvalidText."""
    found: list[Message] = []
    for message in messages:
        check_text(message.content)
        if found and found[-1].role == message.role:
            content = f"{found.pop().content}\n{message.content}"
            found.append(message.model_copy(update={"content": content}))
        else:
            found.append(message)
    return found


def calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with calls as lines of their content, for templates that have no form for calls."""
    return [
        message.model_copy(
            update={
                "content": "\n".join(
                    [*filter(None, [message.content]), *(call.text for call in message.tool_calls)]
                ),
                "tool_calls": None,
            }
        )
        if message.tool_calls
        else message
        for message in messages
    ]


def tools_as_users(messages: Sequence[Message]) -> list[Message]:
    """Returns the messages with each tool's result as a user message, for templates that have no role `tool`.

    If there is any, neighbours of the same role are joined, since most of these templates expect user and assistant
    to take turns.

    Raises:
        InvalidText: a message has a lone surrogate.
    """
    if all(message.role != "tool" for message in messages):
        return list(messages)
    return merged(
        [
            message.model_copy(update={"role": "user", "tool_call_id": None, "name": None})
            if message.role == "tool"
            else message
            for message in messages
        ]
    )
