"""Our prompt templates as Jinja text, the form in which other programs read a model's chat template."""

from collections.abc import Mapping, Sequence

from services.templates.table import BOS, EOS, TEMPLATES, Segment, Text

JINJA_NAMES = tuple(name for name, row in TEMPLATES.items() if row.user[0] and not row.strip)
"""Names of the templates that have a Jinja text. Llama 3 models bring Meta's own, and `raw` has no turns."""

_FRAME = """\
{#- graftwerk: <NAME> -#}
{%- set ns = namespace(role='', system=<DEFAULT>) -%}
{%- for message in messages if message['role'] == 'system' -%}
{%- set ns.system = message['content'] if loop.first else ns.system + '\\n' + message['content'] -%}
{%- endfor -%}
<BEGIN>{%- if ns.system -%}{{- <PREAMBLE> -}}{%- endif -%}
{%- for message in messages -%}
{%- set role = 'user' if message['role'] == 'tool' else message['role'] -%}
{%- if role == 'system' and ns.role in ['', 'system'] -%}
{%- elif role == ns.role -%}
{{- '\\n' + message['content'] -}}
{%- elif role == 'user' and ns.role in ['', 'system'] -%}
{{- <FIRST_USER> + message['content'] -}}
{%- elif role == 'user' and ns.role == 'assistant' -%}
{{- <ASSISTANT_END> + <USER> + message['content'] -}}
{%- elif role == 'assistant' and ns.role == 'user' -%}
{{- <USER_END> + <ASSISTANT> + message['content'] -}}
{%- else -%}
{{- raise_exception('After an optional system message, user and assistant take turns, the user first.') -}}
{%- endif -%}
{%- set ns.role = role -%}
{%- endfor -%}
{%- if ns.role == 'user' -%}{{- <USER_END> + <CUE> -}}{%- elif ns.role == 'assistant' -%}{{- <ASSISTANT_END> -}}{%- endif -%}
"""


def jinja_text(name: str, *, bos: bool) -> str:
    """Returns a template as Jinja text for transformers' `apply_chat_template` and llama.cpp.

    A conversation that ends with the user gives the text of `render`, with or without `add_generation_prompt`: it has no
    other continuation than the assistant's. Neighbouring messages of one role are joined as in `render`.

    Args:
        name: a name in `JINJA_NAMES`.
        bos: the text begins with the tokenizer's beginning-of-text token, which `render` leaves to the tokenizer.

    Raises:
        KeyError: no such template has this name.
    """
    row = TEMPLATES[name]
    first = _expression(row.user[0][1:] if row.user[0][0] == BOS else row.user[0])
    if row.first_user is not None:
        first = f"({_expression(row.first_user)} if ns.system else {first})"
    parts = {
        "NAME": name, "DEFAULT": _quoted(row.default_system), "BEGIN": "{{- bos_token -}}\n" if bos else "",
        "PREAMBLE": _expression(row.preamble), "FIRST_USER": first,
        "USER": _expression(row.user[0]), "USER_END": _expression(row.user[1]),
        "ASSISTANT": _expression(row.assistant[0]), "ASSISTANT_END": _expression(row.assistant[1]),
        "CUE": _expression(row.cue),
    }  # fmt: skip
    text = _FRAME
    for key, value in parts.items():
        text = text.replace(f"<{key}>", value)
    return text


def _expression(parts: Sequence[Segment | str]) -> str:
    """Returns a Jinja expression whose value is the text of the parts."""
    return " + ".join(map(_operand, parts)) or "''"


def _operand(part: Segment | str) -> str:
    if isinstance(part, str):
        return "ns.system"
    if part in (BOS, EOS):
        return "bos_token" if part == BOS else "eos_token"
    return _quoted(part.text if isinstance(part, Text) else part.piece)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


_NAMES: Mapping[str, str] = {jinja_text(name, bos=bos): name for name in JINJA_NAMES for bos in (True, False)}


def name_of_jinja_text(text: str) -> str | None:
    """Returns the name of the template whose Jinja text this is, None for any other text."""
    return _NAMES.get(text)
