"""Budget of a JSON text: how many values it may hold and how deeply they may nest, checked before it is parsed.

A few bytes of text can become a Python object of hundreds of bytes, and validation costs more than parsing. The text is
counted by operations on whole byte strings, without a loop over its values. Text that is not valid JSON passes if its
valid beginning does; its parser refuses it.
"""

from dataclasses import dataclass

_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},:"'))
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_LISTS = bytes.maketrans(b"{}", b"[]")


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonBudget:
    """Limits of a JSON text.

    Attributes:
        containers: lists and objects.
        members: keys of all objects.
        items: elements of all lists; an empty list or object counts as one too.
        depth: lists and objects around a value.
    """

    containers: int
    members: int
    items: int
    depth: int


def excess(data: bytes, budget: JsonBudget) -> str | None:
    """Returns what a JSON text has too much of, as in "has 7 lists and objects, more than 5", or None."""
    # without escaped characters, each quote begins or ends a string
    data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings, most = data.count(b'"') // 2, 1 + budget.items + 2 * budget.members
    if strings > most:
        return _more(strings, "strings", most)
    structure = _structure(data)
    containers = structure.count(b"[") + structure.count(b"{")
    members = structure.count(b":")
    items = structure.count(b",") + containers - members
    if containers > budget.containers:
        return _more(containers, "lists and objects", budget.containers)
    if members > budget.members:
        return _more(members, "members of objects", budget.members)
    if items > budget.items:
        return _more(items, "elements of lists", budget.items)
    return f"is nested more than {budget.depth} levels deep" if _is_deeper(structure, budget.depth) else None


def _more(found: int, what: str, limit: int) -> str:
    return f"has {found} {what}, more than {limit}"


def _structure(data: bytes) -> bytes:
    """Returns brackets, commas and colons outside of strings."""
    # most strings have none inside and become two quotes; splitting at these would make an object of each
    data = data.translate(None, _ALL_BUT_STRUCTURE).replace(b'""', b"")
    return b"".join(data.split(b'"')[::2])


def _is_deeper(structure: bytes, depth: int) -> bool:
    brackets = structure.translate(_AS_LISTS, _ALL_BUT_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")  # the innermost level
    # the rest of a text that ends too early is left to the parser, as far as that does not nest too deeply either
    return b"[]" in brackets or brackets.count(b"[") > depth
