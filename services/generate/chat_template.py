"""A model's own chat template: Jinja text that came with the weights, and is therefore untrusted.

It is rendered in an isolated process (services/isolation/chat_template.py), as it may loop without end or fill the memory.
"""

import re
from collections.abc import Sequence

from services.errors import InvalidRequest, TemplateLimitExceeded
from services.isolation.limits import LimitExceeded, Limits, ProcessDied
from services.isolation.process import IsolatedProcess, Steps
from services.templates import Message, Segment, Special, Text, check_text, tools_as_users
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


class ChatTemplate:
    """The template `text` of a model, and the process that renders it: a model's template harms no other model's."""

    def __init__(self, text: str, limits: Limits = LIMITS) -> None:
        self.text = text
        self._process = IsolatedProcess("services.isolation.chat_template", limits)

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Steps[list[Segment]]:
        """Returns the conversation as segments, ending where the model's output begins.

        A special token counts as one only if the template wrote it. In messages, the same characters are replaced before
        rendering and restored afterwards. A template that does not name the role `tool` gets results of tools as user
        messages. If the last message is the assistant's, the segments end within it and the output continues its text, as
        with `continue_final_message` of transformers.

        Raises:
            InvalidRequest: the template is faulty, or refuses this conversation.
            TemplateLimitExceeded: rendering it takes too long, too much memory, or gives too long a text.
            InvalidText: a message has a lone surrogate.
        """
        if _NAMES_TOOL_ROLE.search(self.text) is None:
            messages = tools_as_users(messages)
        shielded = sorted({*tokenizer.guarded_tokens, _OPEN, _CLOSE, _END.strip()}, key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, shielded)))
        numbers = {piece: number for number, piece in enumerate(shielded)}
        turns = []
        for message in messages:
            check_text(message.content)
            hidden = pattern.sub(lambda found: f"{_OPEN}{numbers[found.group()]}{_CLOSE}", message.content)
            turns.append({"role": message.role, "content": hidden})
        continues = turns[-1]["role"] == "assistant"
        last = turns[-1]["content"]
        if continues:
            turns[-1]["content"] += _END
        rendered = yield from self._rendered(turns, tokenizer, add_generation_prompt=not continues)
        if continues:
            rendered = _beginning(rendered, last)
        return [
            segment
            if isinstance(segment, Special)
            else Text(_SHIELD.sub(lambda found: shielded[int(found.group(1))], segment.text))
            for segment in tokenizer.split_special(rendered)
        ]

    def _rendered(
        self, turns: list[dict[str, str]], tokenizer: Tokenizer, *, add_generation_prompt: bool
    ) -> Steps[str]:
        variables = {
            "messages": turns, "add_generation_prompt": add_generation_prompt, "tools": None, "documents": None,
        }  # fmt: skip
        request = {
            "template": self.text,
            "variables": {**variables, **_pieces(tokenizer)},
            "characters": OWN_CHARACTERS + 2 * sum(len(turn["content"]) for turn in turns),
        }
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
