"""Texts of bounded length: names and lists of megabytes never make an error, a record or a log line of megabytes."""

import re
from collections.abc import Sequence

TEXT_LIMIT = 2000
"""Most characters of a message."""

WORD_LIMIT = 320
"""Most characters of a word in it; file names have up to 255."""

LISTED = 10
"""Names that a list in a message has, before the count of the others."""

_LONG_WORD = re.compile(rf"\S{{{WORD_LIMIT + 1},}}")


def bounded(text: str, limit: int = TEXT_LIMIT) -> str:
    """Returns a text with its long words, and then itself, cut in the middle; the cut says how much is left out.

    Half a surrogate pair, as in the name of a file that is not UTF-8, is written as its number: every message becomes JSON.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    return cut(_LONG_WORD.sub(lambda word: cut(word[0], WORD_LIMIT), text), limit)


def cut(text: str, limit: int) -> str:
    """Returns a text of at most `limit` characters (at least 60): its beginning and its end."""
    if len(text) <= limit:
        return text
    half = (limit - len(f"…[{len(text)} characters]…")) // 2
    return f"{text[:half]}…[{len(text) - 2 * half} characters]…{text[-half:]}"


def listed(names: Sequence[str], *, none: str = "none", limit: int = LISTED) -> str:
    """Returns names as a list: the first ones, and the count of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or none) + more
