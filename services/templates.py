"""Prompt templates: how an instruction or a conversation is written down for a model.

A template does not give one string but segments, text or special token: a special token is an id of the
vocabulary, so what a user typed (`</s>`, `<|eot_id|>`) can never become one. The wordings are those of
Stanford Alpaca, of the inference and training scripts of Chinese-LLaMA-Alpaca and its second version, of
Meta's `llama` and `llama3` repositories, of FastChat's Vicuna v1.1 and of OpenAI's ChatML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.errors import InvalidRequest, InvalidText, UnknownTemplate

Role = Literal["system", "user", "assistant"]

MESSAGE_LIMIT = 1_000_000
"""Characters of one turn of a conversation."""

OWN_TEMPLATE = "model"
"""Stands in a request for the chat template that the model brings along."""


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Role = Field(description="Who speaks: system, user or assistant.")
    content: str = Field(description="Text of the turn.", json_schema_extra={"maxLength": MESSAGE_LIMIT})

    @field_validator("content")
    @classmethod
    def _not_too_long(cls, content: str) -> str:
        # not max_length: with it pydantic refuses lone surrogates in words of its own, see check_text
        if len(content) > MESSAGE_LIMIT:
            raise ValueError(f"at most {MESSAGE_LIMIT} characters are accepted, found {len(content)}")
        return content


@dataclass(frozen=True, slots=True)
class Text:
    """A run of plain text: nothing in it is ever taken for a special token."""

    text: str


@dataclass(frozen=True, slots=True)
class Special:
    """A special token by its piece; `BOS` and `EOS` are those of whatever tokenizer there is.

    Where the vocabulary lacks the piece, a `required` one is an error and another is written as text.
    """

    piece: str
    required: bool = True


Segment = Text | Special

BOS = Special("bos")
EOS = Special("eos")


@dataclass(frozen=True, slots=True)
class Template:
    """One row of the table: what stands before, around and after each turn.

    `preamble` holds `{system}`; `user` and `assistant` are (before, after). `first_user` replaces what stands
    before the first user turn where there is a preamble; `cue` is what the answer follows upon.
    `default_system` is used where a conversation brings no system text. `stop` are texts, `stop_pieces`
    special tokens with which a model of this kind ends its turn or begins to play the user's.
    """

    preamble: tuple[Segment | Literal["{system}"], ...] = ()
    user: tuple[tuple[Segment, ...], tuple[Segment, ...]] = ((), ())
    first_user: tuple[Segment, ...] | None = None
    assistant: tuple[tuple[Segment, ...], tuple[Segment, ...]] = ((), ())
    cue: tuple[Segment, ...] = ()
    default_system: str = ""
    strip: bool = False
    stop: tuple[str, ...] = ()
    stop_pieces: tuple[str, ...] = ()


_LLAMA_3_HEADER = Special("<|start_header_id|>")
_LLAMA_3_HEADER_END = Special("<|end_header_id|>")
_EOT = Special("<|eot_id|>")
_IM_START = Special("<|im_start|>", required=False)
_IM_END = Special("<|im_end|>", required=False)


def _llama_3_header(role: Role) -> tuple[Segment, ...]:
    return (_LLAMA_3_HEADER, Text(role), _LLAMA_3_HEADER_END, Text("\n\n"))


_ALPACA = Template(
    preamble=("{system}", Text("\n\n")),
    user=((Text("### Instruction:\n\n"),), (Text("\n\n"),)),
    assistant=((Text("### Response:\n\n"),), (Text("\n\n"),)),
    cue=(Text("### Response:\n\n"),),
    default_system=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
    ),
    stop=("### Instruction:",),
)
# Trained with one newline after the first heading and a space after the second.
_ALPACA_TRAIN = replace(
    _ALPACA,
    user=((Text("### Instruction:\n"),), (Text("\n\n"),)),
    assistant=((Text("### Response: "),), (Text("\n\n"),)),
    cue=(Text("### Response: "),),
)
_LLAMA_2 = Template(
    preamble=(Text("[INST] <<SYS>>\n"), "{system}", Text("\n<</SYS>>\n\n")),
    first_user=(),
    user=((BOS, Text("[INST] ")), (Text(" [/INST]"),)),
    assistant=((Text(" "),), (EOS,)),
    default_system="You are a helpful assistant. 你是一个乐于助人的助手。",
    stop=("[INST]",),
)
_LLAMA_3 = Template(
    preamble=(*_llama_3_header("system"), "{system}", _EOT),
    user=(_llama_3_header("user"), (_EOT,)),
    assistant=(_llama_3_header("assistant"), (_EOT,)),
    cue=_llama_3_header("assistant"),
    strip=True,
    stop_pieces=("<|eot_id|>", "<|eom_id|>"),
)
_VICUNA = Template(
    preamble=("{system}", Text(" ")),
    user=((Text("USER: "),), (Text(" "),)),
    assistant=((Text("ASSISTANT: "),), (EOS,)),
    cue=(Text("ASSISTANT:"),),
    default_system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    stop=("USER:",),
)
_CHATML = Template(
    preamble=(_IM_START, Text("system\n"), "{system}", _IM_END, Text("\n")),
    user=((_IM_START, Text("user\n")), (_IM_END, Text("\n"))),
    assistant=((_IM_START, Text("assistant\n")), (_IM_END, Text("\n"))),
    cue=(_IM_START, Text("assistant\n")),
    stop=("<|im_end|>", "<|im_start|>"),
    stop_pieces=("<|im_end|>",),
)

TEMPLATES: Mapping[str, Template] = {
    "alpaca": _ALPACA,
    "alpaca-train": _ALPACA_TRAIN,
    "alpaca-chat": _ALPACA_TRAIN,
    "alpaca-2": _LLAMA_2,
    "llama-2": _LLAMA_2,
    "llama-3": _LLAMA_3,
    "vicuna": _VICUNA,
    "chatml": _CHATML,
    "raw": Template(),
}


def find_template(name: str) -> Template:
    """The template of this name.

    Raises:
        UnknownTemplate: there is none; the message lists those that there are.
    """
    template = TEMPLATES.get(name)
    if template is None:
        raise UnknownTemplate(
            f"There is no prompt template {name!r}; there are {', '.join(TEMPLATES)}.",
            'Choose one of these, or "model" for the chat template that the model brings along.',
        )
    return template


def check_text(text: str) -> None:
    """Refuse text that no tokenizer can take.

    Lone surrogates come from terminals, where backspace took half of a character away.

    Raises:
        InvalidText: with the position of the first one.
    """
    for position, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise InvalidText(
                f"The text has a lone surrogate (U+{ord(character):04X}) at position {position}: "
                "half of a character, which cannot be encoded as UTF-8.",
                "Remove or retype that character.",
            )


def render(
    template: str,
    messages: Sequence[Message] | None = None,
    *,
    instruction: str | None = None,
    system: str | None = None,
    input: str | None = None,
) -> list[Segment]:
    """The prompt as segments, ending where the model's answer begins.

    Args:
        template: a name in `TEMPLATES`.
        messages: a conversation whose last turn is the user's; or else
        instruction: what to do, joined by one newline with `input`.
        system: replaces the template's own system text; "" leaves it out. A system message goes before it.

    Returns:
        Segments in which no two texts are neighbours. A template that begins with the tokenizer's
        beginning-of-text token leaves that one to the tokenizer's own rule.

    Raises:
        UnknownTemplate, InvalidRequest, InvalidText.
    """
    row = find_template(template)
    if messages is None:
        messages = [Message(role="user", content=_joined_instruction(instruction, input))]
    elif instruction is not None or input is not None:
        raise InvalidRequest(
            "Messages came together with an instruction or an input.", "Give one or the other."
        )
    if template == "raw":
        return _raw(messages, system)
    system, turns = _split_system(_merged(messages), row.default_system if system is None else system)
    return _joined(_written(row, turns, system))


def _joined_instruction(instruction: str | None, input: str | None) -> str:
    if instruction is None:
        raise InvalidRequest("There is nothing to answer: neither messages nor an instruction.")
    return instruction if not input else f"{instruction}\n{input}"


def _raw(messages: Sequence[Message], system: str | None) -> list[Segment]:
    if system or len(messages) != 1 or messages[0].role != "user":
        raise InvalidRequest(
            "The template raw continues one text; it has no place for a system text or several turns.",
            f"Choose one of {', '.join(name for name in TEMPLATES if name != 'raw')}.",
        )
    check_text(messages[0].content)
    return _joined([Text(messages[0].content)])


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of the same role as one message, joined by a newline."""
    merged: list[Message] = []
    for message in messages:
        check_text(message.content)
        if merged and merged[-1].role == message.role:
            message = Message(role=message.role, content=f"{merged.pop().content}\n{message.content}")  # noqa: PLW2901
        merged.append(message)
    return merged


def _split_system(messages: list[Message], default: str) -> tuple[str, list[Message]]:
    system, turns = default, messages
    if messages and messages[0].role == "system":
        system, turns = messages[0].content, messages[1:]
    check_text(system)
    expected: Role = "user"
    for number, message in enumerate(turns):
        if message.role != expected:
            raise InvalidRequest(
                f"Turn {number + 1} of the conversation is of {message.role} where {expected} was expected.",
                "After an optional system message, user and assistant take turns, the user first.",
            )
        expected = "assistant" if expected == "user" else "user"
    if not turns or turns[-1].role != "user":
        raise InvalidRequest(
            "The conversation's last turn is not the user's: there is nothing to answer.",
            "End the messages with one of role user.",
        )
    return system, turns


def _written(row: Template, turns: list[Message], system: str) -> list[Segment]:
    segments: list[Segment] = []
    if system:
        text = system.strip() if row.strip else system
        segments += [Text(text) if part == "{system}" else part for part in row.preamble]
    for number, turn in enumerate(turns):
        before, after = row.user if turn.role == "user" else row.assistant
        if number == 0:
            before = _before_first(row, system)
        content = turn.content.strip() if row.strip else turn.content
        segments += [*before, Text(content), *after]
    return [*segments, *row.cue]


def _before_first(row: Template, system: str) -> tuple[Segment, ...]:
    """What stands before the first user turn: the tokenizer writes the very first BOS itself."""
    if row.first_user is not None and system:
        return row.first_user
    before = row.user[0]
    return before[1:] if before[0] == BOS else before


def _joined(segments: list[Segment]) -> list[Segment]:
    """The same with neighbouring texts as one and empty texts gone: each text is tokenized as a whole."""
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + segment.text)
        elif segment != Text(""):
            joined.append(segment)
    return joined
