"""Forms in which models write calls of tools and thinking, found from the text of their chat template.

Sources: the chat templates that Qwen 2.5 and 3, Hermes 2 Pro, Llama 3.1 to 3.3 and Mistral publish with their weights.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

THINK, END_THINK = "<think>", "</think>"

Calls = list[tuple[str, str]]
"""Names and arguments (JSON text) of calls."""

_BLOCK = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_NAME_ARGS = re.compile(r"\s*([A-Za-z0-9_.:-]+)\s*(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?=\{)")


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way to write calls.

    `begin` opens a call, `end` closes it ("" where the end of the output does). With `may_be_bare` an output that begins
    with a JSON object is calls too. `sign` is the text of a chat template that has this form. A required call is written as
    `before` NAME `between` ARGUMENTS `after`, where the name is a part of a JSON string or plain text.
    """

    name: str
    sign: str
    begin: str
    end: str
    read: Callable[[str], Calls | None]
    before: str
    between: str
    after: str
    may_be_bare: bool = False
    id_length: int = 24


def _object_calls(text: str) -> Calls | None:
    """Returns the calls in one or more JSON objects, or lists of them, separated by white space, `;` or `,`."""
    calls: Calls = []
    for value in _values(text):
        for item in value if isinstance(value, list) else [value]:
            call = _call(item)
            if call is None:
                return None
            calls.append(call)
    return calls or None


def _values(text: str) -> Iterator[Any]:
    """Yields the JSON values of a text; a text that is not JSON gives None in the end."""
    decoder, at = json.JSONDecoder(), 0
    while (at := _skipped(text, at)) < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            yield None
            return
        yield value


def _skipped(text: str, at: int) -> int:
    while at < len(text) and (text[at].isspace() or text[at] in ";,"):
        at += 1
    return at


def _call(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models write them as JSON text
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return value["name"], json.dumps(arguments, ensure_ascii=False)


def _mistral_calls(text: str) -> Calls | None:
    """Returns calls as a list, or the newer `name[ARGS]{…}` and `name{…}`, each after a `[TOOL_CALLS]` of its own or not."""
    named = _NAME_ARGS.match(text)
    if named is None:
        return _object_calls(text)
    try:
        arguments, end = json.JSONDecoder().raw_decode(text, named.end())
    except (ValueError, RecursionError):
        return None
    call = [(named[1], json.dumps(arguments, ensure_ascii=False))]
    if not text[end:].strip():
        return call
    rest = _mistral_calls(text[end:])
    return None if rest is None else call + rest


CALL_FORMATS: Sequence[CallFormat] = (
    CallFormat(
        name="mistral",
        sign="[TOOL_CALLS]",
        begin="[TOOL_CALLS]",
        end="",
        read=_mistral_calls,
        before='[{"name": "',
        between='", "arguments": ',
        after="}]",
        id_length=9,  # its templates refuse ids of another length
    ),
    CallFormat(
        name="hermes",
        sign="<tool_call>",
        begin="<tool_call>",
        end="</tool_call>",
        read=_object_calls,
        before='\n{"name": "',
        between='", "arguments": ',
        after="}\n",
    ),
    CallFormat(
        name="llama3",
        sign="<|start_header_id|>",
        begin="<|python_tag|>",
        end="",
        read=_object_calls,
        before='{"name": "',
        between='", "parameters": ',
        after="}",
        may_be_bare=True,
    ),
)
"""The forms that are known; the first whose sign is in a template is the template's."""

OTHER_SIGNS = ("<function=", "<parameter=", "<arg_key>")
"""Signs of forms that are not known, in templates that have the sign of a known one too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputForm:
    """Parts that an output may have.

    `names` are the functions that may be called, in the form `calls`. With `begins_thinking` the prompt has opened the
    thinking already. With `one_call` further calls are left out.
    """

    calls: CallFormat | None = None
    names: frozenset[str] = frozenset()
    thinks: bool = False
    begins_thinking: bool = False
    one_call: bool = False

    @property
    def is_plain(self) -> bool:
        """True if the whole output is the answer."""
        return self.calls is None and not self.thinks

    @property
    def marks(self) -> list[str]:
        """Texts that separate the parts; they may be special tokens."""
        calls = [] if self.calls is None else [self.calls.begin, self.calls.end]
        return [mark for mark in (*calls, *((THINK, END_THINK) if self.thinks else ())) if mark]


def reads(template: str, variable: str) -> bool:
    """Returns True if a Jinja template reads a variable of this name."""
    pattern = re.compile(rf"(?<![\w.]){re.escape(variable)}\b")
    return any(pattern.search(_STRING.sub("", block[1])) for block in _BLOCK.finditer(template))


def call_format_of(template: str) -> CallFormat | None:
    """Returns the form of calls of a chat template, None if it takes no tools or its form is not known."""
    if not reads(template, "tools") or any(sign in template for sign in OTHER_SIGNS):
        return None
    return next((form for form in CALL_FORMATS if form.sign in template), None)


def thinks(template: str) -> bool:
    """Returns True if a chat template is of a model that thinks before it answers."""
    return END_THINK in template or THINK in template
