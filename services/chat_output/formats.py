"""Forms in which models write calls of tools and thinking, found from the text of their chat template.

Sources: the chat templates that Qwen 2.5 and 3, Hermes 2 Pro, Llama 3.1 to 3.3 and Mistral publish with their weights.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

THINK, END_THINK = "<think>", "</think>"

Calls = list[tuple[str, str]]
"""Names and arguments (JSON text) of calls."""

_BLOCK = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_SEPARATORS = re.compile(r"[\s;,]*")
JSON_STRING = r'"(?:[^"\\]|\\.)*"'
NAME_BEFORE_OBJECT = r"(?P<name>[A-Za-z0-9_.:-]+)\s*(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?=\{)"
_KEY = re.compile(rf"[\s,]*({JSON_STRING})\s*:\s*", re.DOTALL)
_NAME_ARGS = re.compile(rf"\s*{NAME_BEFORE_OBJECT}")


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way to write calls.

    `begin` opens a call, `end` closes it ("" where the end of the output does). With `may_be_bare` an output that begins
    with a JSON object is calls too; with `may_be_named` a call may be a name before its arguments. `sign` is the text of a chat template that has this form. A required call is written as
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
    may_be_named: bool = False
    id_length: int = 24


def _object_calls(text: str) -> Calls | None:
    """Returns the calls in one or more JSON objects, or lists of them, separated by white space, `;` or `,`."""
    calls: Calls = []
    at = _SEPARATORS.match(text).end()  # type: ignore[union-attr]  # it matches the empty text too
    depth = 0
    while at < len(text):
        if text[at] in "[]":
            depth, at = depth + (1 if text[at] == "[" else -1), at + 1
            if depth not in (0, 1):
                return None
        else:
            members, at = _members(text, at)
            call = _call(members)
            if call is None:
                return None
            calls.append(call)
        at = _SEPARATORS.match(text, at).end()  # type: ignore[union-attr]
    return calls if calls and depth == 0 else None


def _mistral_calls(text: str) -> Calls | None:
    """Returns calls as a list, or the newer `name[ARGS]{…}` and `name{…}`, one after another."""
    calls: Calls = []
    at = 0
    while (named := _NAME_ARGS.match(text, at)) is not None:
        try:
            _, at = _DECODER.raw_decode(text, named.end())
        except (ValueError, RecursionError):
            return None
        calls.append((named["name"], text[named.end() : at]))
    if not calls:
        return _object_calls(text)
    return None if text[at:].strip() else calls


def _call(members: Mapping[str, str]) -> tuple[str, str] | None:
    """Returns name and arguments, whose text is kept as the model wrote it."""
    try:
        name = _DECODER.decode(members["name"])
        text = members.get("arguments", members.get("parameters", "{}"))
        arguments = _DECODER.decode(text)
        if isinstance(arguments, str):  # some models write them as JSON text
            text = arguments
            arguments = _DECODER.decode(text)
    except (ValueError, KeyError, RecursionError):
        return None
    return (name, text) if isinstance(name, str) and isinstance(arguments, dict) else None


def _members(text: str, at: int) -> tuple[dict[str, str], int]:
    """Returns the values of a JSON object as text, by name, and the place after it; what is not an object has no members."""
    members: dict[str, str] = {}
    try:
        _, end = _DECODER.raw_decode(text, at)
        at += 1
        while (found := _KEY.match(text, at)) is not None:
            name = str(json.loads(found[1]))
            _, at = _DECODER.raw_decode(text, found.end())
            if name in members:
                return {}, len(text)  # which of both is meant is not known
            members[name] = text[found.end() : at]
    except (ValueError, RecursionError):
        return {}, len(text)
    return members, end


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


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
        may_be_named=True,
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
    thinking already. With `one_call` the output ends after its first call. With `is_required` a grammar holds the output to one
    call, after thinking, which can only be cut off.
    """

    calls: CallFormat | None = None
    names: frozenset[str] = frozenset()
    thinks: bool = False
    begins_thinking: bool = False
    one_call: bool = False
    is_required: bool = False

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
    pattern = re.compile(rf"(?<![\w.])(?<!set ){re.escape(variable)}\b")
    return any(pattern.search(_STRING.sub("", block[1])) for block in _BLOCK.finditer(template))


def before_mark(text: str, mark: str) -> int | None:
    """Returns the place of the first mark that is not within a JSON string, None if there is none."""
    if mark not in text:
        return None
    pattern = re.compile(rf'{JSON_STRING}|{re.escape(mark)}|"', re.DOTALL)
    for found in pattern.finditer(text):
        if found[0] == mark:
            return found.start()
        if found[0] == '"':  # a string that is open at the end of the text
            return None
    return None


def call_format_of(template: str) -> CallFormat | None:
    """Returns the form of calls of a chat template, None if it takes no tools or its form is not known."""
    if not reads(template, "tools") or any(sign in template for sign in OTHER_SIGNS):
        return None
    return next((form for form in CALL_FORMATS if form.sign in template), None)


def thinks(template: str) -> bool:
    """Returns True if a chat template is of a model that thinks before it answers."""
    return END_THINK in template or THINK in template
