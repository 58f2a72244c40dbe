"""The OpenAPI document as the page shows it: operations by tag with a curl command each, and schemas with their fields."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from werkzeug.http import HTTP_STATUS_CODES

Json = Mapping[str, Any]

METHODS = ("get", "post", "put", "patch", "delete")
REF = "#/components/schemas/"
PROBLEM = "application/problem+json"

LIMITS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters", "maxLength": "at most {} characters", "minItems": "at least {} items",
    "maxItems": "at most {} items", "minProperties": "at least {} pairs", "maxProperties": "at most {} pairs",
    "pattern": "pattern {}", "format": "{}",
}  # fmt: skip
"""Limits of JSON Schema as text."""

TAG_ORDER = ("jobs", "models", "uploads", "hub", "openai", "system")

SHOWN_VALUES = 40
"""Most values of an enumeration that are listed."""


class TypePart(NamedTuple):
    """A part of the text of a type; `ref` is the name of a schema that it links to."""

    text: str
    ref: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """A parameter of an operation or a field of a schema; `place` is `path`, `query` or `header`."""

    name: str
    types: Sequence[TypePart]
    required: bool
    description: str
    limits: Sequence[str]
    default: str | None = None
    place: str = ""


class Body(NamedTuple):
    """A body of a request or of a response."""

    media_type: str
    types: Sequence[TypePart]


class Answer(NamedTuple):
    """A response by its status."""

    status: str
    phrase: str
    description: str
    bodies: Sequence[Body]


class Example(NamedTuple):
    """A request as a curl command."""

    title: str
    command: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One operation of the API."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    parameters: Sequence[Field]
    bodies: Sequence[Body]
    answers: Sequence[Answer]
    refusals: Sequence[Answer]
    examples: Sequence[Example]
    needs_key: bool


@dataclass(frozen=True, slots=True)
class Schema:
    """One schema: an object with fields, or the type that it stands for."""

    name: str
    description: str
    fields: Sequence[Field] = ()
    types: Sequence[TypePart] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """Everything that the page shows."""

    description: str
    operations: Mapping[str, Sequence[Operation]] = field(default_factory=dict)
    schemas: Sequence[Schema] = ()


def reference_of(document: Json) -> Reference:
    """Returns the content of the page."""
    schemas = document["components"]["schemas"]
    grouped: dict[str, list[Operation]] = {tag: [] for tag in TAG_ORDER}
    for path, operations in document["paths"].items():
        for method in METHODS:
            if method in operations:
                found = operations[method]
                grouped.setdefault(found["tags"][0], []).append(_operation(method, path, found))
    return Reference(
        document["info"]["description"],
        {tag: found for tag, found in grouped.items() if found},
        [_schema(name, schemas[name]) for name in sorted(schemas)],
    )


def _operation(method: str, path: str, found: Json) -> Operation:
    answers = [_answer(status, answer) for status, answer in sorted(found["responses"].items())]
    refusals = [answer for answer in answers if any(body.media_type == PROBLEM for body in answer.bodies)]
    return Operation(
        id=f"{method}-{re.sub('[^a-z0-9]+', '-', path.lower()).strip('-')}",
        method=method.upper(),
        path=path,
        summary=found.get("summary", ""),
        description=found.get("description", ""),
        parameters=[_parameter(parameter) for parameter in found.get("parameters", [])],
        bodies=_bodies(found.get("requestBody", {})),
        answers=[answer for answer in answers if answer not in refusals],
        refusals=refusals,
        examples=list(_examples(method, path, found)),
        needs_key=bool(found.get("security")),
    )


def _answer(status: str, found: Json) -> Answer:
    phrase = HTTP_STATUS_CODES.get(int(status), "")
    description = found.get("description", "")
    return Answer(status, phrase, "" if description == phrase else description, _bodies(found))


def _bodies(found: Json) -> list[Body]:
    return [
        Body(media_type, list(types_of(content.get("schema", {}))))
        for media_type, content in found.get("content", {}).items()
    ]


def _parameter(found: Json) -> Field:
    schema = found["schema"]
    return _field(
        found["name"], schema, required=found.get("required", False), place=found["in"],
        description=found.get("description") or schema.get("description", ""),
    )  # fmt: skip


def _field(name: str, schema: Json, *, required: bool, description: str, place: str = "") -> Field:
    default = schema.get("default")
    return Field(
        name=name,
        types=list(types_of(schema)),
        required=required,
        description=description,
        limits=list(_limits(schema)),
        default=None if default in (None, [], {}, "") else json.dumps(default, ensure_ascii=False),
        place=place,
    )


def _schema(name: str, found: Json) -> Schema:
    required = found.get("required", [])
    fields = [
        _field(field_name, schema, required=field_name in required, description=schema.get("description", ""))
        for field_name, schema in found.get("properties", {}).items()
    ]
    return Schema(name, found.get("description", ""), fields, () if fields else list(types_of(found)))


# ---- types --------------------------------------------------------------------------------------------


def types_of(schema: Json) -> Iterator[TypePart]:
    """Yields the parts of the text of a type, such as `array of`, a link, `or null`."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REF)
        yield TypePart(name, name)
        return
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            yield from _alternatives(schema[key])
            return
    yield from _plain(schema)


def _alternatives(schemas: Sequence[Json]) -> Iterator[TypePart]:
    for number, schema in enumerate(schemas):
        if number:
            yield TypePart(" or ")
        yield from types_of(schema)


def _plain(schema: Json) -> Iterator[TypePart]:
    if "const" in schema:
        yield TypePart(json.dumps(schema["const"], ensure_ascii=False))
    elif "enum" in schema:
        values = [json.dumps(value, ensure_ascii=False) for value in schema["enum"]]
        yield TypePart(", ".join(values[:SHOWN_VALUES]) + (" …" if len(values) > SHOWN_VALUES else ""))
    elif schema.get("type") == "array":
        yield TypePart("array of ")
        yield from types_of(schema.get("items", {}))
    elif isinstance(schema.get("additionalProperties"), Mapping) and "properties" not in schema:
        yield TypePart("map to ")
        yield from types_of(schema["additionalProperties"])
    else:
        yield TypePart(str(schema.get("type", "any")))


def _limits(schema: Json) -> Iterator[str]:
    parts = [schema, *(part for part in schema.get("anyOf", []) if part.get("type") != "null")]
    for part in parts:
        yield from (text.format(_whole(part[name])) for name, text in LIMITS.items() if name in part)


def _whole(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


# ---- examples -----------------------------------------------------------------------------------------


def _examples(method: str, path: str, found: Json) -> Iterator[Example]:
    for media_type, content in found.get("requestBody", {}).get("content", {}).items():
        if media_type != "application/json":
            yield Example(
                "", curl(method, path, found, f"--data-binary @file -H 'Content-Type: {media_type}'")
            )
            continue
        for example in content.get("examples", {}).values():
            yield Example(example["summary"], curl(method, path, found, _json_body(example["value"])))
        if "examples" not in content:
            yield Example(
                "", curl(method, path, found, "-H 'Content-Type: application/json' -d @request.json")
            )
    if "requestBody" not in found:
        yield Example("", curl(method, path, found))


def _json_body(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=2).replace("'", "'\\''")
    return f"-H 'Content-Type: application/json' -d '\n{text}'"


def curl(method: str, path: str, found: Json, rest: str = "") -> str:
    """Returns the curl command of an operation: `$URL` is the address of the service, parameters of the path are variables."""
    address = re.sub(r"\{(\w+)\}", lambda name: f"${name[1].upper()}", path)
    words = ["curl"]
    if method not in ("get", "post") or (method == "post" and not rest):
        words.append(f"-X {method.upper()}")
    if any("text/event-stream" in answer.get("content", {}) for answer in found["responses"].values()):
        words.append("-N")
    words.append(f'"$URL{address}"')
    return " ".join([*words, rest]).strip()


def code_spans(text: str) -> Markup:
    """Returns a text of the document as HTML: parts in backticks are code."""
    parts = re.split(r"`([^`\n]+)`", text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part)
        for number, part in enumerate(parts)
    )
