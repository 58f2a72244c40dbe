"""Prompts in one of our templates, as segments."""

from collections.abc import Sequence

from services.errors import InvalidRequest
from services.templates.message import Message, Role, calls_as_text, check_text, merged, tools_as_users
from services.templates.table import BOS, TEMPLATES, Segment, Template, Text, find_template


def render(
    template: str,
    messages: Sequence[Message] | None = None,
    *,
    instruction: str | None = None,
    system: str | None = None,
    input: str | None = None,
) -> list[Segment]:
    """Returns the prompt as segments, ending where the model's output begins.

    Args:
        template: a name in `TEMPLATES`.
        messages: a conversation; if its last message is the assistant's, the output continues that text; or else
        instruction: the task, joined with `input` by a newline.
        system: replaces the template's own system text; "" leaves it out. A system message takes precedence.

    Returns:
        Segments without adjacent texts. A template that begins with the tokenizer's beginning-of-text token leaves
        that token to the tokenizer's own rule. Results of tools are user turns.

    Raises:
        UnknownTemplate: no template has this name.
        InvalidRequest: the template cannot express the conversation.
        InvalidText: a text has a lone surrogate.
    """
    row = find_template(template)
    messages = turns_of(instruction, messages, input)
    if template == "raw":
        return _raw(messages, system)
    turns = merged(tools_as_users(calls_as_text(messages)))
    system, turns = _split_system(row, turns, row.default_system if system is None else system)
    return _joined(_written(row, turns, system))


def turns_of(
    instruction: str | None, messages: Sequence[Message] | None, input: str | None
) -> Sequence[Message]:
    """Returns the conversation, or the instruction with its input as a conversation of one message.

    Raises:
        InvalidRequest: both were given, or neither.
    """
    if messages is None:
        if instruction is None:
            raise InvalidRequest("Give either a prompt or messages.")
        return [Message(role="user", content=f"{instruction}\n{input}" if input else instruction)]
    if instruction is not None or input is not None:
        raise InvalidRequest(
            "Messages were given together with an instruction or an input.",
            "Give either a prompt or messages.",
        )
    return messages


def _raw(messages: Sequence[Message], system: str | None) -> list[Segment]:
    if system or len(messages) != 1 or messages[0].role != "user":
        raise InvalidRequest(
            "The template raw continues one text; it has no place for a system text or several turns.",
            f"Choose one of {', '.join(name for name in TEMPLATES if name != 'raw')}.",
        )
    check_text(messages[0].content)
    return _joined([Text(messages[0].content)])


def _split_system(row: Template, messages: list[Message], default: str) -> tuple[str, list[Message]]:
    """Returns the system text and the turns after it; neighbours have different roles."""
    system, turns = default, messages
    if messages and messages[0].role == "system":
        system, turns = messages[0].content, messages[1:]
    check_text(system)
    if not turns:
        raise InvalidRequest("The conversation has no message of the user.", "Add one of role user.")
    for number, message in enumerate(turns):
        is_first_reply = number == 0 and message.role == "assistant"
        if is_first_reply or (message.role == "system" and not row.system_turns):
            expected: Role = "user" if number == 0 or turns[number - 1].role == "assistant" else "assistant"
            raise InvalidRequest(
                f"Turn {number + 1} of the conversation is of {message.role} where {expected} was expected.",
                "After an optional system message, user and assistant take turns, the user first.",
            )
    return system, turns


def _written(row: Template, turns: list[Message], system: str) -> list[Segment]:
    segments: list[Segment] = []
    if system:
        segments += _system_turn(row, system)
    for number, turn in enumerate(turns):
        if turn.role == "system":
            segments += _system_turn(row, turn.content)
            continue
        before, after = row.user if turn.role == "user" else row.assistant
        if number == 0:
            before = _before_first(row, system)
        segments += [*before, Text(_content(row, turn.content)), *after]
        if number == len(turns) - 1 and turn.role == "assistant":
            return segments[: len(segments) - len(after)]
    return [*segments, *row.cue]


def _system_turn(row: Template, text: str) -> list[Segment]:
    return [Text(_content(row, text)) if part == "{system}" else part for part in row.preamble]


def _content(row: Template, text: str) -> str:
    return text.strip() if row.strip else text


def _before_first(row: Template, system: str) -> tuple[Segment, ...]:
    """Returns the segments before the first user turn; the tokenizer itself writes the very first BOS."""
    if row.first_user is not None and system:
        return row.first_user
    before = row.user[0]
    return before[1:] if before[0] == BOS else before


def _joined(segments: list[Segment]) -> list[Segment]:
    """Returns the segments with adjacent texts joined and empty ones removed: each text is tokenized as a whole."""
    joined: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + segment.text)
        elif segment != Text(""):
            joined.append(segment)
    return joined
