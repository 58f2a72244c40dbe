"""A model's own chat template: Jinja text that came with the weights, and is therefore untrusted.

It is rendered in an isolated process (services/isolation/chat_template.py), as it may loop without end or fill the memory.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from services.chat_output import CallFormat, call_format_of, thinks
from services.errors import InvalidRequest, TemplateLimitExceeded
from services.isolation.limits import LimitExceeded, Limits, ProcessDied
from services.isolation.process import IsolatedProcess, Steps
from services.kinds.guidance import SCHEMA_DEPTH, depth
from services.templates import (
    Message,
    MessageToolCall,
    Segment,
    Special,
    Text,
    calls_as_text,
    check_text,
    tools_as_users,
)
from services.tokenizers import Tokenizer

LIMITS = Limits(cpu_seconds=2.0, memory_bytes=512 << 20)
"""Limits of one rendering; a template of Llama 3 takes 0.1 ms and 10 MB."""

OWN_CHARACTERS = 1 << 18
"""Characters that a template may write in addition to twice the conversation's."""

# Characters of the private use area enclose the number of the text that they replace.
_OPEN, _CLOSE = "\ue000", "\ue001"
_END = "\ue002 "
"""Written after an assistant's message that the output continues; templates that trim messages remove its space."""

_SHIELD = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")

_NAMES_TOOL_ROLE = re.compile(r"""["']tool["']""")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateOptions:
    """Tools that a template describes, in OpenAI's form, and variables of its own, `enable_thinking` for example.

    Without `add_generation_prompt` a conversation ends with its last message, which is not continued either.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True


NO_OPTIONS = TemplateOptions()


class ChatTemplate:
    """The template `text` of a model, and the process that renders it: a model's template harms no other model's."""

    def __init__(self, text: str, limits: Limits = LIMITS) -> None:
        self.text = text
        self._process = IsolatedProcess("services.isolation.chat_template", limits)

    @property
    def call_format(self) -> CallFormat | None:
        """Form of its model's calls, None if it describes no tools or its form is not known."""
        return call_format_of(self.text)

    @property
    def thinks(self) -> bool:
        """True if its model thinks before it answers."""
        return thinks(self.text)

    def render(
        self, messages: Sequence[Message], tokenizer: Tokenizer, options: TemplateOptions = NO_OPTIONS
    ) -> Steps[list[Segment]]:
        """Returns the conversation as segments, ending where the model's output begins.

        A special token counts as one only if the template wrote it. In messages and tools, the same characters are replaced
        before rendering and restored afterwards. A template that does not name the role `tool` gets results of tools as user
        messages, and one that does not read `tool_calls` gets calls as text. If the last message is the assistant's, the
        segments end within it and the output continues its text, as with `continue_final_message` of transformers.

        Raises:
            InvalidRequest: the template is faulty, or refuses this conversation.
            TemplateLimitExceeded: rendering it takes too long, too much memory, or gives too long a text.
            InvalidText: a message has a lone surrogate.
        """
        if "tool_calls" not in self.text:
            messages = calls_as_text(messages)
        if _NAMES_TOOL_ROLE.search(self.text) is None:
            messages = tools_as_users(messages)
        shielded = sorted({*tokenizer.guarded_tokens, _OPEN, _CLOSE, _END.strip()}, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, shielded)))
        numbers = {piece: number for number, piece in enumerate(shielded)}

        def hide(text: str) -> str:
            check_text(text)
            return pattern.sub(lambda found: f"{_OPEN}{numbers[found.group()]}{_CLOSE}", text)

        turns = [_hidden(_turn(message), hide) for message in messages]
        tools = _hidden([*options.tools], hide) or None
        continues = options.add_generation_prompt and turns[-1]["role"] == "assistant"
        last = turns[-1]["content"]
        if continues:
            turns[-1]["content"] += _END
        variables = {
            **_hidden(dict(options.variables), hide), "messages": turns, "tools": tools, "documents": None,
            "add_generation_prompt": options.add_generation_prompt and not continues, **_pieces(tokenizer),
        }  # fmt: skip
        given = sum(map(_length, ([list(turn.values())[1:] for turn in turns], tools, options.variables)))
        rendered = yield from self._rendered(variables, OWN_CHARACTERS + 2 * given)
        if continues:
            rendered = _beginning(rendered, last)
        return [
            segment
            if isinstance(segment, Special)
            else Text(_SHIELD.sub(lambda found: shielded[int(found.group(1))], segment.text))
            for segment in tokenizer.split_special(rendered)
        ]

    def _rendered(self, variables: dict[str, Any], characters: int) -> Steps[str]:
        request = {"template": self.text, "variables": variables, "characters": characters}
        try:
            answer = yield from self._process.call(request)
        except LimitExceeded as error:
            raise _beyond_limit(str(error)) from error
        except ProcessDied as error:
            raise _beyond_limit(f"a process that survives it: {error}") from error
        if "exceeded" in answer:
            raise _beyond_limit(answer["exceeded"])
        if "refused" in answer:
            raise InvalidRequest(
                f"The model's own chat template refuses this conversation: {answer['refused'].removesuffix('.')}.",
                "Change the messages, or choose one of our templates.",
            )
        return str(answer["text"])


def _turn(message: Message) -> dict[str, Any]:
    """Returns a message as templates read it: the arguments of calls are objects."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    for name in ("tool_call_id", "name", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            turn[name] = value
    if message.tool_calls:
        turn["tool_calls"] = [_called(call) for call in message.tool_calls]
    return turn


def _called(call: MessageToolCall) -> dict[str, Any]:
    arguments: Any = call.function.arguments
    with suppress(ValueError, RecursionError):
        parsed = json.loads(arguments)
        if isinstance(parsed, dict) and depth(parsed) <= SCHEMA_DEPTH:
            arguments = parsed
    function = {"name": call.function.name, "arguments": arguments}
    return {"type": call.type, "function": function} | ({} if call.id is None else {"id": call.id})


def _hidden(value: Any, hide: Callable[[str], str]) -> Any:
    """Returns a JSON value with all its texts replaced, keys included."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {hide(key): _hidden(item, hide) for key, item in value.items()}
    return [_hidden(item, hide) for item in value] if isinstance(value, list) else value


def _length(value: Any) -> int:
    """Returns the number of characters of all texts in a JSON value, keys included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(key) + _length(item) for key, item in value.items())
    return sum(map(_length, value)) if isinstance(value, list | tuple) else 0


def _beginning(rendered: str, last: str) -> str:
    """Returns the text up to the end of the last message. Raises InvalidRequest if the template has changed that."""
    text, mark, rest = rendered.rpartition(_END.strip())
    if not mark or last.strip() not in text:
        raise InvalidRequest(
            "The model's own chat template cannot continue the assistant's last message: it does not write it as it is.",
            "End the messages with one of role user, or choose one of our templates.",
        )
    return text if rest.startswith(_END[-1]) else text.rstrip()


def _beyond_limit(need: str) -> TemplateLimitExceeded:
    return TemplateLimitExceeded(
        f"The model's own chat template needs {need} for this conversation.",
        "Choose one of our templates, or correct the template in the model's folder.",
    )


def _pieces(tokenizer: Tokenizer) -> dict[str, str]:
    roles = (
        ("bos_token", tokenizer.bos_id),
        ("eos_token", tokenizer.eos_id),
        ("pad_token", tokenizer.pad_id),
    )
    return {role: "" if token_id is None else tokenizer.piece(token_id) for role, token_id in roles}
