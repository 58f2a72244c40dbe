"""Sentences of the service that people read on a page, as they are in the source.

A sentence is a text or an f-string that ends with a full stop. Its values are `{1}`, `{2}`, … in the catalogue `service`;
`api/pages/sentences.py` finds a sentence by its words and fills its values into the translation.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from werkzeug.exceptions import default_exceptions

ROOT = Path(__file__).parents[1]
ERRORS = "services/errors.py"
API_FILES = ("errors", "health", "jobs", "models", "responses", "upload_body", "uploads", "wrong_keys")
SOURCES = (
    *(f"api/{name}.py" for name in API_FILES), "services/names.py", "services/sampling.py", "services/generate_engines.py",
    *(
        f"services/{name}/**/*.py"
        for name in (
            "adapter_tools", "adapters", "architectures", "checkpoints", "convert", "files", "generate", "jobs", "kinds", "merge",
            "models", "preflight", "tokenizers", "verify",
        )
    ),
    "worker/**/*.py",
)  # fmt: skip
"""Files whose sentences are translated, except those in OTHER_READERS."""

OTHER_READERS = ("services/jobs/maintenance.py", "services/models/model_card.py", "worker/janitor.py")
"""Files whose sentences go to a log, into files or into models."""

LOGGERS = ("logger", "logging")
DOCUMENTING = ("description", "examples", "help", "summary")
"""Arguments with texts of the OpenAPI document."""

SHORTEST = 2
"""Fewest spaces of a sentence."""

FEWEST_LETTERS = 5
"""Fewest letters of a sentence besides its values: fewer would recognize any text."""

VALUE = re.compile(r"\{\d+\}")


class Sentence(NamedTuple):
    """A sentence with `{1}`, `{2}`, … for its values, and the expressions of these."""

    text: str
    values: tuple[str, ...]


def sentences(http_codes: Iterable[int]) -> Iterator[Sentence]:
    """Yields the titles of all errors, those of HTTP included, and the sentences of all sources."""
    for status in sorted(http_codes):
        yield Sentence(default_exceptions[status]().name, ())
    for node in ast.parse((ROOT / ERRORS).read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield Sentence((ast.get_docstring(node) or "").splitlines()[0], ())
    for path in source_files():
        yield from sentences_of(path.read_text("utf-8"))


def source_files() -> list[Path]:
    """Returns the files whose sentences are translated."""
    found = {path for pattern in SOURCES for path in ROOT.glob(pattern)}
    return sorted(found - {ROOT / name for name in OTHER_READERS})


def sentences_of(source: str) -> Iterator[Sentence]:
    """Yields the sentences of a module's source, and the phrases that become parts of one."""
    tree = ast.parse(source)
    others = _nodes_of(_other_texts, tree)
    phrases = _nodes_of(_phrases, tree)
    for node in ast.walk(tree):
        found = None if id(node) in others else _sentence(node)
        if found and (_is_complete(found) or id(node) in phrases) and _has_words(found):
            yield found


def _nodes_of(select: Callable[[ast.AST], Iterator[ast.AST]], tree: ast.AST) -> set[int]:
    return {id(node) for parent in ast.walk(tree) for part in select(parent) for node in ast.walk(part)}


def _is_complete(sentence: Sentence) -> bool:
    """Returns True for a sentence that ends with a full stop or with the message of an error."""
    text, values = sentence
    return text.endswith((".", "?")) or (
        bool(values) and text.endswith("}") and values[-1].endswith(".message")
    )


def _has_words(sentence: Sentence) -> bool:
    words = VALUE.sub("", sentence.text)
    return (
        sentence.text.count(" ") >= SHORTEST
        and sum(letter.isalpha() for letter in words) >= FEWEST_LETTERS
        and sentence.text[0] not in " ,:"
    )


def _other_texts(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the parts of a node whose texts are no sentences of their own: docstrings, logs, sample texts, parts of f-strings."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        yield node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if isinstance(node.func.value, ast.Name) and node.func.value.id in LOGGERS:
            yield node
    elif isinstance(node, ast.keyword) and node.arg in DOCUMENTING:
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from (value for value in node.values if isinstance(value, ast.Constant))
    elif isinstance(node, ast.Module):
        tables = (part.value for part in node.body if isinstance(part, ast.Assign | ast.AnnAssign))
        yield from (table for table in tables if isinstance(table, ast.Tuple | ast.List))


def _phrases(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the parts of a node that are texts without a full stop: warnings, reasons, what pydantic puts behind a field's name."""
    if isinstance(node, ast.FunctionDef) and "warning" in f"{node.name} {ast.get_docstring(node)}".lower():
        yield from node.body
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant | ast.JoinedStr):
        yield node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ValueError":
        yield from node.args


def _sentence(node: ast.AST) -> Sentence | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
        return Sentence(node.value, ())
    if not isinstance(node, ast.JoinedStr):
        return None
    text, values = "", []
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
        elif isinstance(part, ast.FormattedValue):
            if text.endswith("}") and values:  # two values without a word between them cannot be told apart
                values[-1] += f" {ast.unparse(part.value)}"
            else:
                values.append(ast.unparse(part.value))
                text += f"{{{len(values)}}}"
    return Sentence(text, tuple(values))
