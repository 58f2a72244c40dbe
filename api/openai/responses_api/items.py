"""Items of an input: messages, function calls and their outputs, and the turns of a chat that they are."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, field_validator

from api.openai.body import Body, TextOr, tag_of, tagged
from api.openai.messages import PARTS_LIMIT
from services.kinds.shared import MESSAGES_LIMIT

Json = dict[str, Any]

UNREAD_PARTS = ("input_image", "input_file", "input_audio")
"""Types of parts that no model here reads."""

OF_THE_CLIENT = frozenset({"id", "status"})
"""Fields with which items come back from an earlier response."""


class ResponsesTextPart(Body):
    """A text of a message, or of a function's output."""

    ignored: ClassVar[frozenset[str]] = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(Body):
    """A refusal of another model, read as its text."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """The refusal."""
        return self.refusal


Part = Annotated[
    Annotated[ResponsesTextPart, tagged("input_text")] | Annotated[RefusalPart, tagged("refusal")],
    Discriminator(
        lambda value: "[of refusal]" if tag_of(value) == "[of refusal]" else "[of input_text]",
    ),
]
Content = TextOr[Annotated[list[Part], Field(max_length=PARTS_LIMIT)]]


def _refuse_unread_parts(value: Any) -> Any:
    for part in value if isinstance(value, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in UNREAD_PARTS:
            raise ValueError(f"{kind} cannot be read: the models here take text. Send input_text parts alone")
    return value


def _text(content: str | Sequence[ResponsesTextPart | RefusalPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


class MessageItem(Body):
    """A message of the user, the assistant or the developer."""

    ignored: ClassVar[frozenset[str]] = OF_THE_CLIENT | {"phase"}

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    _unread = field_validator("content", mode="before")(_refuse_unread_parts)


class FunctionCallItem(Body):
    """A call of a function by the model."""

    ignored: ClassVar[frozenset[str]] = OF_THE_CLIENT | {"async", "caller", "namespace"}

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(Body):
    """The output of a function that the model called."""

    ignored: ClassVar[frozenset[str]] = OF_THE_CLIENT | {"caller", "name"}

    type: Literal["function_call_output"]
    call_id: str
    output: Content

    _unread = field_validator("output", mode="before")(_refuse_unread_parts)


class ReasoningItem(BaseModel):
    """Thinking of an earlier turn, which is not a part of later ones."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: Literal["reasoning"]


Item = Annotated[
    Annotated[MessageItem, tagged("message")]
    | Annotated[FunctionCallItem, tagged("function_call")]
    | Annotated[FunctionOutputItem, tagged("function_call_output")]
    | Annotated[ReasoningItem, tagged("reasoning")],
    Discriminator(
        lambda value: tag_of(value, "message"),
        custom_error_type="unknown_item",
        custom_error_message="An item is a message, function_call, function_call_output or reasoning: leave others out",
    ),
]

Items = Annotated[list[Item], Field(min_length=1, max_length=MESSAGES_LIMIT)]


def chat_messages(value: str | Iterable[Item]) -> list[Json]:
    """Returns an input as messages of `POST /v1/chat/completions`; calls that follow each other are one turn."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    found: list[Json] = []
    for item in value:
        match item:
            case MessageItem():
                found.append({"role": item.role, "content": _text(item.content)})
            case FunctionCallItem():
                _turn_of_calls(found)["tool_calls"].append(_call(item))
            case FunctionOutputItem():
                found.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
    return found


def _turn_of_calls(messages: list[Json]) -> Json:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", [])
    return messages[-1]


def _call(item: FunctionCallItem) -> Json:
    function = {"name": item.name, "arguments": item.arguments}
    return {"id": item.call_id, "type": "function", "function": function}
