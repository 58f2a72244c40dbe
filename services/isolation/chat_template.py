"""`python -m services.isolation.chat_template`: renders chat templates, which are Jinja text that came with a model's weights.

Everything that a template sees is as in transformers' `apply_chat_template` (transformers/utils/chat_template_utils.py): the
sandbox, the filter `tojson`, the functions, and blocks named `generation`, whose text is part of the output.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from services.bounded_text import cut
from services.isolation.serving import serve

REASON_CHARACTERS = 500
"""Longest reason of a refusal: a template may raise any text."""

REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    NameError,
    SyntaxError,  # of the Python code that Jinja makes, for example of loops that are nested too deeply
    RuntimeError,  # macros that call each other without end
)


def render(request: Mapping[str, Any]) -> dict[str, str]:
    """Renders a template; returns its `text`, the reason of its refusal as `refused`, or the reached limit as `exceeded`.

    Args:
        request: `template`, its `variables`, and `characters`, the longest text that is returned.
    """
    parts, left = [], request["characters"]
    try:
        for part in _compiled(request["template"]).generate(**request["variables"]):
            left -= len(part)
            if left < 0:
                return {"exceeded": f"more than {request['characters']} characters of text"}
            parts.append(part)
        text = "".join(parts)
        text.encode()  # refuses lone surrogates
    except REFUSALS as error:
        return {"refused": cut(str(error) or type(error).__name__, REASON_CHARACTERS)}
    return {"text": text}


@lru_cache(maxsize=1)  # a process serves one model
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": TemplateDict(),
        "namespace": TemplateNamespace,
    }
    return environment.from_string(template)


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}`, which marks the model's own turns for training."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # Jinja only reads it

    def parse(self, parser: Parser) -> nodes.Node:
        """Returns the block's content, as the call of a function that returns it."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Any) -> Any:
        """Returns the rendered content of the block."""
        return caller()


class TemplateDict:
    """`dict` without the attributes of Python's type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Returns `dict.fromkeys` of the arguments."""
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(Namespace):
    """`namespace` without attributes that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name in the template
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_attribute(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Returns JSON that is not escaped for HTML, unlike that of Jinja's own filter."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    """Refuses the conversation."""
    raise jinja2.TemplateError(message)


def strftime_now(format: str) -> str:
    """Returns the local time in a format of strftime(3)."""
    return datetime.now().strftime(format)


if __name__ == "__main__":
    serve(render)
