"""The page of the HTTP API's reference, generated from the OpenAPI document of the application."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from api import create_app
from services.settings import Settings

Json = dict[str, Any]

TAGS = {
    "jobs": "Jobs",
    "models": "Models",
    "uploads": "Uploads",
    "hub": "Hub",
    "openai": "OpenAI's API",
    "system": "System",
}
LINE_BREAK = "<br>"
BOUNDS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
LONGEST_ENUM = 12
"""Longer enumerations are listed below the name of their type on pages written by hand."""


def openapi_document() -> Json:
    """Returns the document as a running service has it at `/openapi.json`."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(Settings(models_dir=Path(folder)))
        return dict(app.test_client().get("/openapi.json").get_json())


def http_reference(document: Json) -> str:
    """Returns the page: every operation by its tag, then every schema."""
    head = [
        "# HTTP API reference",
        "Generated from the OpenAPI document of the service, which a running service has at `/openapi.json`; `/docs` shows it with "
        "forms to try it. [The tour](../api.md) explains how the parts belong together, and [Errors](../errors.md) lists the codes. "
        "An error is a [Problem](#problem) as `application/problem+json`; below `/v1` it has OpenAI's shape.",
    ]
    operations = [part for tag in document["tags"] for part in _operations_of(document, tag["name"])]
    schemas = [
        part
        for name, schema in sorted(document["components"]["schemas"].items())
        for part in _schema(name, schema)
    ]
    return "\n\n".join([*head, *operations, "## Schemas", *schemas]) + "\n"


def _operations_of(document: Json, tag: str) -> Iterator[str]:
    yield f"## {TAGS.get(tag, tag)}"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield from _operation(f"{method.upper()} {path}", operation)


def _operation(title: str, operation: Json) -> Iterator[str]:
    yield f"### `{title}`"
    yield operation["summary"]
    if operation["description"]:
        yield operation["description"].replace("\n", "  \n")
    if operation.get("parameters"):
        yield _table(("parameter", "in", "type", "meaning"), map(_parameter, operation["parameters"]))
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody']['content'])}."
        yield from _examples(operation["requestBody"]["content"])
    responses = sorted(operation["responses"].items())
    yield _table(("status", "response"), [_response(*item) for item in responses if item[0] < "400"])
    if errors := [status for status, _ in responses if status >= "400"]:
        yield f"Errors: {', '.join(errors)}."


def _examples(content: Json) -> Iterator[str]:
    for found in content.values():
        examples = found.get("examples", {}).values()
        lines = [json.dumps(example["value"], ensure_ascii=False) for example in examples]
        if lines:
            yield "```json\n" + "\n".join(lines) + "\n```"


def _parameter(parameter: Json) -> tuple[str, ...]:
    needed = "" if parameter.get("required") else _default(parameter["schema"])
    text = parameter.get("description", "")
    return f"`{parameter['name']}`", parameter["in"], _type(parameter["schema"]), _sentence(text, needed)


def _response(status: str, response: Json) -> tuple[str, str]:
    description = response.get("description", "").rstrip(".")
    return status, ": ".join(part for part in (description, _content(response.get("content", {}))) if part)


def _content(content: Json) -> str:
    return ", ".join(
        f"`{mimetype}` {_type(found.get('schema', {}))}".strip() for mimetype, found in content.items()
    )


def _schema(name: str, schema: Json) -> Iterator[str]:
    yield f"### {name}"
    if schema.get("description"):
        yield schema["description"].replace("\n", " ")
    needed = set(schema.get("required", ()))
    rows = [
        (
            f"`{field}`",
            _type(found),
            _sentence(found.get("description", ""), "" if field in needed else _default(found)),
        )
        for field, found in schema.get("properties", {}).items()
    ]
    yield _table(("field", "type", "meaning"), rows) if rows else _type(schema)


def _sentence(text: str, rest: str) -> str:
    text = text if not text or text.endswith((".", "。")) else f"{text}."
    return " ".join(part for part in (text.replace("\n", " "), rest) if part)


def _default(schema: Json) -> str:
    if schema.get("default") is None:
        return "Optional."
    return f"Default: `{json.dumps(schema['default'], ensure_ascii=False)}`."


def _type(schema: Json) -> str:
    """Returns the type of a schema in words, with links to the schemas that it names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(_type(choice) for choice in schema[union]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return _enumeration(schema["enum"])
    return _simple_type(schema) + _bounds(schema)


def _enumeration(values: list[Any]) -> str:
    shown = ", ".join(f"`{json.dumps(value)}`" for value in values[:LONGEST_ENUM])
    return f"{shown}, …" if len(values) > LONGEST_ENUM else shown


def _simple_type(schema: Json) -> str:
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _bounds(schema: Json) -> str:
    found = [text.format(f"{schema[key]:.16g}") for key, text in BOUNDS.items() if key in schema]
    return f", {', '.join(found)}" if found else ""


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", LINE_BREAK))
