"""Blocks of a message's content, and the turns of a chat that messages are."""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field

from api.openai.body import Body, TextOr, tag_of, tagged
from api.openai.messages import PARTS_LIMIT

Json = dict[str, Any]


class TextBlock(Body):
    """A text."""

    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations"})

    type: Literal["text"]
    text: str


class ToolUseBlock(Body):
    """A call of a tool by the model."""

    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control", "caller", "toolset_name"})

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Body):
    """The result of a tool that the model called."""

    ignored: ClassVar[frozenset[str]] = frozenset({"cache_control", "is_error", "toolset_name"})

    type: Literal["tool_result"]
    tool_use_id: str
    content: TextOr[Annotated[list[TextBlock], Field(max_length=PARTS_LIMIT)]] = ""


class ThinkingBlock(Body):
    """Thinking of an earlier turn."""

    ignored: ClassVar[frozenset[str]] = frozenset({"signature"})

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(BaseModel):
    """Thinking of another model, encrypted."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["redacted_thinking"]


Block = Annotated[
    Annotated[TextBlock, tagged("text")]
    | Annotated[ToolUseBlock, tagged("tool_use")]
    | Annotated[ToolResultBlock, tagged("tool_result")]
    | Annotated[ThinkingBlock, tagged("thinking")]
    | Annotated[RedactedThinkingBlock, tagged("redacted_thinking")],
    Discriminator(
        tag_of,
        custom_error_type="unread_block",
        custom_error_message="The models here read text: a block is text, tool_use, tool_result or thinking. Images and documents "
        "are not read",
    ),
]

TextBlocks = Annotated[list[TextBlock], Field(max_length=PARTS_LIMIT)]


class MessageParam(Body):
    """A message of a conversation."""

    ignored: ClassVar[frozenset[str]] = frozenset({"id"})

    role: Literal["user", "assistant", "system"]
    content: TextOr[Annotated[list[Block], Field(max_length=PARTS_LIMIT)]]

    @property
    def blocks(self) -> Sequence[Block]:
        """The content as blocks."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content


def text_of(content: str | Iterable[Any]) -> str:
    """Returns the text of a content; its text blocks are joined by newlines."""
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content if isinstance(block, TextBlock))


def chat_messages(messages: Iterable[MessageParam]) -> list[Json]:
    """Returns messages as those of `POST /v1/chat/completions`; neighbours of the user, or of the assistant, are one turn."""
    found: list[Json] = []
    for message in messages:
        turns = _assistant(message) if message.role == "assistant" else _others(message)
        for turn in turns:
            if found and _are_one(found[-1], turn):
                found[-1]["content"] += f"\n{turn['content']}"
            else:
                found.append(turn)
    return found


def _are_one(before: Json, after: Json) -> bool:
    is_text = not ({*before, *after} - {"role", "content"})
    return is_text and before["role"] == after["role"] and after["role"] in ("user", "assistant")


def _assistant(message: MessageParam) -> list[Json]:
    calls = [_call(block) for block in message.blocks if isinstance(block, ToolUseBlock)]
    thinking = [block.thinking for block in message.blocks if isinstance(block, ThinkingBlock)]
    text = text_of(message.blocks)
    turn: Json = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        turn["tool_calls"] = calls
    if thinking:
        turn["reasoning_content"] = "\n".join(thinking)
    return [turn]


def _others(message: MessageParam) -> list[Json]:
    """Returns the results of tools, each a turn of its own, and the text after them."""
    results = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": text_of(block.content)}
        for block in message.blocks
        if isinstance(block, ToolResultBlock)
    ]
    has_text = any(isinstance(block, TextBlock) for block in message.blocks)
    text = [{"role": message.role, "content": text_of(message.blocks)}] if has_text or not results else []
    return [*results, *text]


def _call(block: ToolUseBlock) -> Json:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}
