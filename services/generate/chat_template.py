"""A model's own chat template: Jinja text that came with the weights, and so from a stranger.

It is rendered in Jinja's sandbox, with what transformers' `apply_chat_template` offers to templates.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.errors import InvalidRequest
from services.templates import Message, Segment, Special, Text, check_text
from services.tokenizers import Tokenizer

# Characters of the private use area stand around the number of what they replace.
_OPEN, _CLOSE = "\ue000", "\ue001"
_SHIELD = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


def render_chat_template(
    chat_template: str, messages: Sequence[Message], tokenizer: Tokenizer
) -> list[Segment]:
    """The conversation as segments, ending where the answer begins.

    What looks like a special token is one where the template wrote it, and text where a message did: there it is
    replaced before rendering and put back afterwards.

    Raises:
        InvalidRequest: the template is faulty, or refuses this conversation.
        InvalidText: a message has lone surrogates.
    """
    shielded = sorted({*tokenizer.special_tokens, _OPEN, _CLOSE}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, shielded)))
    numbers = {piece: number for number, piece in enumerate(shielded)}
    turns = []
    for message in messages:
        check_text(message.content)
        hidden = pattern.sub(lambda found: f"{_OPEN}{numbers[found.group()]}{_CLOSE}", message.content)
        turns.append({"role": message.role, "content": hidden})
    segments = tokenizer.split_special(_rendered(chat_template, turns, tokenizer))
    return [
        segment
        if isinstance(segment, Special)
        else Text(_SHIELD.sub(lambda found: shielded[int(found.group(1))], segment.text))
        for segment in segments
    ]


def _rendered(chat_template: str, turns: list[dict[str, str]], tokenizer: Tokenizer) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    roles = (
        ("bos_token", tokenizer.bos_id),
        ("eos_token", tokenizer.eos_id),
        ("pad_token", tokenizer.pad_id),
    )
    pieces = {role: "" if token_id is None else tokenizer.piece(token_id) for role, token_id in roles}
    try:
        template = environment.from_string(chat_template)
        return template.render(
            messages=turns, add_generation_prompt=True, tools=None, documents=None, **pieces
        )
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        AttributeError,
        RuntimeError,  # macros that call each other without end
        MemoryError,
    ) as error:
        raise InvalidRequest(
            f"The model's own chat template does not take this conversation: {str(error) or type(error).__name__}",
            "Change the messages, or choose one of our templates.",
        ) from error


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
