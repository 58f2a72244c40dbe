"""Messages of a conversation, and the check that a text can be encoded."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.errors import InvalidText

Role = Literal["system", "user", "assistant", "tool"]

MESSAGE_LIMIT = 1_000_000
"""Maximum number of characters of one message."""


class Message(BaseModel):
    """One message of a conversation. The content may be empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role = Field(
        description="Author of the message: system, user, assistant, or tool for the result of a tool."
    )
    content: str = Field(description="Text of the message.", json_schema_extra={"maxLength": MESSAGE_LIMIT})

    @field_validator("content")
    @classmethod
    def _check_length(cls, content: str) -> str:
        # Not max_length: pydantic would then refuse lone surrogates with its own message, see check_text.
        if len(content) > MESSAGE_LIMIT:
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
            message.model_copy(update={"role": "user"}) if message.role == "tool" else message
            for message in messages
        ]
    )
