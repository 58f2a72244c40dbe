"""Budget of a JSON text: how many values it may hold and how deeply they may nest, checked before it is parsed.

A few bytes of text can become a Python object of hundreds of bytes, and validation costs more than parsing. The text is
counted by operations on whole byte strings, without a loop over its values. Text that is not valid JSON passes if its
valid beginning does; its parser refuses it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},:"'))
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_BACKSLASHES = re.compile(rb"\\*")

BLOCK_BYTES = 2**18
"""Bytes that are counted at once: the count takes little memory, and ends early."""


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

    @property
    def marks(self) -> int:
        """Most brackets, commas and colons of a text within the budget."""
        return 2 * self.containers + self.items + 2 * self.members


def excess(data: bytes, budget: JsonBudget) -> str | None:
    """Returns what a JSON text has too much of, as in "has 7 lists and objects, more than 5", or None."""
    structure = bytearray()
    for block in _structure(data):
        structure += block
        if len(structure) > budget.marks + len(block):
            break
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


def _structure(data: bytes) -> Iterator[bytes]:
    """Yields brackets, commas and colons outside of strings.

    Of a block only these and quotes are kept. Two quotes side by side are then a string without marks, or the end of one and the begin
    of the next: without them, each other quote still begins or ends a string.
    """
    start, inside = 0, False
    while start < len(data):
        end = _end_of_block(data, start)
        # without escaped characters, each quote begins or ends a string
        block = data[start:end].replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _ALL_BUT_STRUCTURE)
        block = b'"' * inside + block
        inside = block.count(b'"') % 2 == 1
        yield b"".join((block + b'"' * inside).replace(b'""', b"").split(b'"')[::2])
        start = end


def _end_of_block(data: bytes, start: int) -> int:
    """Returns the end of a block that does not cut an escaped character in two."""
    end = start + BLOCK_BYTES
    match = _BACKSLASHES.match(data, end) if data[end - 1 : end] == b"\\" else None
    return end if match is None else match.end() + 1


def _is_deeper(structure: bytearray, depth: int) -> bool:
    brackets = structure.translate(_AS_LISTS, _ALL_BUT_BRACKETS)
    for _ in range(depth):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")  # the innermost level
    # the rest of a text that ends too early is left to the parser, as far as that does not nest too deeply either
    return b"[]" in brackets or brackets.count(b"[") > depth
