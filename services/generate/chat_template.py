"""A model's own chat template: Jinja text that came with the weights, and is therefore untrusted.

It is rendered in Jinja's sandbox, with the functions and variables that transformers' `apply_chat_template` offers.
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
from services.templates import Message, Segment, Special, Text, check_text, tools_as_users
from services.tokenizers import Tokenizer

# Characters of the private use area enclose the number of the text that they replace.
_OPEN, _CLOSE = "\ue000", "\ue001"
_SHIELD = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")

_NAMES_TOOL_ROLE = re.compile(r"""["']tool["']""")


def render_chat_template(
    chat_template: str, messages: Sequence[Message], tokenizer: Tokenizer
) -> list[Segment]:
    """Returns the conversation as segments, ending where the model's output begins.

    A special token counts as one only if the template wrote it. In messages, the same characters are replaced before
    rendering and restored afterwards. A template that does not name the role `tool` gets results of tools as user
    messages.

    Raises:
        InvalidRequest: the template is faulty, or refuses this conversation.
        InvalidText: a message has a lone surrogate.
    """
    if _NAMES_TOOL_ROLE.search(chat_template) is None:
        messages = tools_as_users(messages)
    shielded = sorted({*tokenizer.guarded_tokens, _OPEN, _CLOSE}, key=len, reverse=True)
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
    try:
        template = _environment().from_string(chat_template)
        return template.render(
            messages=turns, add_generation_prompt=True, tools=None, documents=None, **_pieces(tokenizer)
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
        reason = str(error) or type(error).__name__
        raise InvalidRequest(
            f"The model's own chat template refuses this conversation: {reason.removesuffix('.')}.",
            "Change the messages, or choose one of our templates.",
        ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _pieces(tokenizer: Tokenizer) -> dict[str, str]:
    roles = (
        ("bos_token", tokenizer.bos_id),
        ("eos_token", tokenizer.eos_id),
        ("pad_token", tokenizer.pad_id),
    )
    return {role: "" if token_id is None else tokenizer.piece(token_id) for role, token_id in roles}


def _to_json(value: Any, indent: int | None = None) -> str:
    """Returns JSON that is not escaped for HTML, unlike that of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
