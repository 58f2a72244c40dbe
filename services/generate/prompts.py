"""From what people ask to the token ids that the model reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.errors import InvalidRequest
from services.generate.chat_template import render_chat_template
from services.templates import OWN_TEMPLATE, Message, Segment, find_template, render
from services.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class BuiltPrompt:
    """A prompt's tokens, the template that was used, and what ends an answer in that template."""

    token_ids: list[int]
    template: str
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()


def build_prompt(
    tokenizer: Tokenizer,
    *,
    template: str | None = None,
    prompt: str | None = None,
    messages: Sequence[Message] | None = None,
    system: str | None = None,
    input: str | None = None,
    chat_template: str | None = None,
) -> BuiltPrompt:
    """Token ids of a prompt or a conversation.

    Args:
        template: a name in `services.templates`, or "model" for the model's own chat template. None continues a
            prompt as it stands; for messages it is the model's own template, or else the one that fits the
            tokenizer (see `fitting_template`).
        prompt: an instruction, or the text to continue.
        messages: a conversation, instead of `prompt`.
        system: replaces the template's system text.
        input: joined to the instruction.
        chat_template: the model's own (`LoadedModel.chat_template`).

    Raises:
        InvalidRequest, UnknownTemplate, InvalidText.
    """
    if (prompt is None) == (messages is None):
        raise InvalidRequest("Give either a prompt or messages.")
    if template is None:
        template = "raw" if messages is None else fitting_template(tokenizer, chat_template)
    if template == OWN_TEMPLATE:
        turns = (
            list(messages) if messages is not None else [Message(role="user", content=_joined(prompt, input))]
        )
        return _by_own_template(tokenizer, chat_template, turns, system)
    if template == "raw" and (system or input):
        raise InvalidRequest(
            "A text that is continued as it stands has no place for a system text or an input.",
            "Name a template, alpaca for example.",
        )
    segments = render(template, messages, instruction=prompt, system=system, input=input)
    row = find_template(template)
    stop_ids = [
        tokenizer.special_tokens[piece] for piece in row.stop_pieces if piece in tokenizer.special_tokens
    ]
    token_ids = _not_empty(tokenizer, tokenizer.encode_segments(segments))
    return BuiltPrompt(token_ids, template, row.stop, frozenset(stop_ids))


def fitting_template(tokenizer: Tokenizer, chat_template: str | None) -> str:
    """Which template a conversation gets when nobody names one.

    The model's own before all; then llama-3 or chatml where the vocabulary has their special tokens; otherwise
    alpaca-chat, the format of the models that this house is for.
    """
    if chat_template is not None:
        return OWN_TEMPLATE
    if "<|start_header_id|>" in tokenizer.special_tokens:
        return "llama-3"
    return "chatml" if "<|im_start|>" in tokenizer.special_tokens else "alpaca-chat"


def _joined(prompt: str | None, input: str | None) -> str:
    return f"{prompt}\n{input}" if input else str(prompt)


def _by_own_template(
    tokenizer: Tokenizer, chat_template: str | None, turns: list[Message], system: str | None
) -> BuiltPrompt:
    if chat_template is None:
        raise InvalidRequest(
            "This model brings no chat template along.", "Name one of our templates, alpaca for example."
        )
    if system and not any(turn.role == "system" for turn in turns):
        turns = [Message(role="system", content=system), *turns]
    segments: list[Segment] = render_chat_template(chat_template, turns, tokenizer)
    # Such a template writes the beginning of text itself where the model wants one.
    token_ids = tokenizer.encode_segments(segments, add_bos=False)
    return BuiltPrompt(_not_empty(tokenizer, token_ids), OWN_TEMPLATE)


def _not_empty(tokenizer: Tokenizer, token_ids: list[int]) -> list[int]:
    """A model needs one token at least: an empty prompt is the beginning of a text."""
    if token_ids or tokenizer.bos_id is None:
        return token_ids
    return [tokenizer.bos_id]
