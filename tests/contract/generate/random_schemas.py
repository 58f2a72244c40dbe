"""Random JSON schemas whose texts are short."""

import random
from collections.abc import Callable
from typing import Any

Maker = Callable[[random.Random, int], dict[str, Any]]


def integer(r: random.Random, depth: int) -> dict[str, Any]:
    low = r.randint(-50, 50)
    return {"type": "integer", "minimum": low, "exclusiveMaximum": low + r.randint(1, 400)}


def number(r: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "number", "minimum": 0.5, "maximum": r.choice([0.75, 3, 12.25]), "multipleOf": 0.25}


def text(r: random.Random, depth: int) -> dict[str, Any]:
    least = r.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + r.randint(0, 4)}


def pattern(r: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": "string",
        "pattern": r.choice(["^[a-c]{2,4}$", "^(yes|no)$", "^\\d{3}-[A-Z]$", "^é?羊{1,2}$"]),
    }


def choice(r: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": r.sample(["red", 'a "b"\n', 7, None, True, [1, "x"], {"k": 2.5}, "驼"], 3)}


def constant(r: random.Random, depth: int) -> dict[str, Any]:
    return {"const": r.choice(["left", 0, False, None, {"a": []}])}


def dated(r: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "string", "format": r.choice(["date", "time", "uuid", "ipv4"])}


def array(r: random.Random, depth: int) -> dict[str, Any]:
    least = r.randint(0, 2)
    return {"type": "array", "items": schema(r, depth + 1), "minItems": least, "maxItems": least + 1}


def pair(r: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "array", "prefixItems": [schema(r, 2), schema(r, 2)], "items": False, "minItems": 2}


def union(r: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [schema(r, depth + 1), {"type": "null"}]}


def record(r: random.Random, depth: int) -> dict[str, Any]:
    names = r.sample(["name", "age", "x y", "列", 'a"b'], r.randint(1, 3))
    return {
        "type": "object",
        "properties": {name: schema(r, depth + 1) for name in names},
        "required": r.sample(names, r.randint(0, len(names))),
        "additionalProperties": False,
    }


def referred(r: random.Random, depth: int) -> dict[str, Any]:
    if depth:  # $defs belong to the root
        return text(r, depth)
    item = {"$ref": "#/$defs/item"}
    return {"$defs": {"item": schema(r, 2)}, "type": "array", "items": item, "minItems": 1, "maxItems": 2}


SIMPLE: tuple[Maker, ...] = (integer, number, text, pattern, choice, constant, dated)
NESTED: tuple[Maker, ...] = (array, pair, union, record, record, referred)


def schema(r: random.Random, depth: int = 0) -> dict[str, Any]:
    """Returns a schema of at most three levels."""
    return r.choice(SIMPLE if depth > 1 else NESTED + SIMPLE)(r, depth)
