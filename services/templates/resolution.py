"""Template resolution: who writes a prompt down, and in which template."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.errors import InvalidRequest
from services.templates.message import Message, check_text
from services.templates.rendering import render, turns_of
from services.templates.table import Segment

OWN_TEMPLATE = "model"
"""Name of the chat template that a model brings along."""

RAW_TEMPLATE = "raw"
"""Name of the template that continues a text unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptParts:
    """Parts of one prompt: either `prompt`, an instruction or a text to continue, or `messages`, a conversation.

    `system` replaces a template's system text, `input` is appended to the prompt, and `template` is a name in `TEMPLATES`,
    "model", or None for the default.
    """

    prompt: str | None = None
    messages: Sequence[Message] | None = None
    system: str | None = None
    input: str | None = None
    template: str | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model's own chat template."""

    messages: list[Message]


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """Segments of a prompt in one of our templates, and the template's name."""

    segments: list[Segment]
    template: str


def resolve(parts: PromptParts, *, chat_template: str) -> Conversation | RenderedPrompt:
    """Returns the conversation for the model's own template, or the prompt in one of ours.

    Args:
        chat_template: name of the template of a conversation for which none is named. A prompt for which none is named is
            continued unchanged.

    Raises:
        UnknownTemplate: no template has this name.
        InvalidRequest: the parts contradict each other, or the template cannot express them.
        InvalidText: a text has a lone surrogate.
    """
    template = parts.template
    if template is None:
        template = RAW_TEMPLATE if parts.messages is None else chat_template
    if template == OWN_TEMPLATE:
        return Conversation(_with_system(parts))
    if template == RAW_TEMPLATE and (parts.system or parts.input):
        raise InvalidRequest(
            "A text that is continued unchanged has no place for a system text or an input.",
            "Name a template, alpaca for example.",
        )
    segments = render(
        template, parts.messages, instruction=parts.prompt, system=parts.system, input=parts.input
    )
    return RenderedPrompt(segments, template)


def _with_system(parts: PromptParts) -> list[Message]:
    turns = list(turns_of(parts.prompt, parts.messages, parts.input))
    if parts.system and not any(turn.role == "system" for turn in turns):
        turns = [Message(role="system", content=parts.system), *turns]
    for turn in turns:
        for text in turn.texts:
            check_text(text)
    return turns
