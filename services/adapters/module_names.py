"""Modules as an adapter's configuration names them: by the end of their name, or by regular expressions with values."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping

import regex

from services.errors import UnsupportedAdapter

SECONDS = 0.75
"""Longest time that the regular expressions of one configuration may take, in seconds of the processor."""

LENGTH_LIMIT = 2000
NESTING_LIMIT = 4
"""Longest regular expression, in characters, and deepest groups: `regex` doubles its program with each repeated group."""

_PLAIN = re.compile(r"[\w.]+")
_AMBIGUOUS = re.compile(r"\[\^?\[|\[:|--|&&|~~|\|\||\{(?!\d+(?:,\d*)?\}|,\d+\})")
"""Parts that Python's `re` and `regex` understand differently."""
_GROUPS = re.compile(r"\\.|([()])", re.DOTALL)

WRITE_OUT = "Write the modules' names out."


class NameEnds:
    """Ends of modules' names: "q_proj" stands for every module whose last part is that."""

    def __init__(self, ends: Iterable[str]) -> None:
        self._by_parts: dict[int, set[str]] = {}
        for end in ends:
            self._by_parts.setdefault(end.count(".") + 1, set()).add(end)

    def of(self, name: str) -> Iterator[str]:
        """Yields the ends that a name has."""
        parts = name.split(".")
        for count, ends in self._by_parts.items():
            end = ".".join(parts[-count:])
            if count <= len(parts) and end in ends:
                yield end


class ModulePatterns:
    """Values by regular expressions, as `rank_pattern` has them: the first that matches the end of a name counts.

    Source: peft/utils/other.py, get_pattern_key. Most of them are plain names, in which a dot is any character; these are looked up.
    The others come from whoever wrote the file, and run within a limit of time.
    """

    def __init__(self, adapter: str, key: str, patterns: Mapping[str, float]) -> None:
        """`key`: name of the patterns in the configuration, for messages.

        Raises:
            UnsupportedAdapter: One is not a regular expression, or they take too long.
        """
        self._what = f"Adapter {adapter}: {key}"
        self._seconds_left = SECONDS
        self._plain: dict[tuple[int, ...], dict[str, tuple[int, float]]] = {}
        self._regular: list[tuple[int, regex.Pattern[str], float]] = []
        for number, (pattern, value) in enumerate(patterns.items()):
            if _PLAIN.fullmatch(pattern):
                form = self._plain.setdefault(_form(pattern), {})
                form.setdefault(pattern, (number, value))
            else:
                self._regular.append((number, self._compiled(pattern), value))

    def value(self, module: str, default: float) -> float:
        """Returns the value of a module.

        Raises:
            UnsupportedAdapter: The expressions take too long.
        """
        number, value = min(self._plain_values(module), default=(None, default))
        for at, pattern, other in self._regular:
            if number is not None and at > number:
                break
            if self._matches(pattern, module):
                return other
        return value

    def _plain_values(self, module: str) -> Iterator[tuple[int, float]]:
        starts = [0, *(at + 1 for at, character in enumerate(module) if character == ".")]
        ends = {len(module) - start: module[start:] for start in starts}
        for (length, *dots), values in self._plain.items():
            end = ends.get(length)
            if end is not None and (found := values.get(_with_dots(end, dots))) is not None:
                yield found

    def _matches(self, pattern: regex.Pattern[str], module: str) -> bool:
        began = time.thread_time()
        try:
            return pattern.fullmatch(module, timeout=self._seconds_left) is not None
        except TimeoutError as error:
            raise self._too_slow() from error
        finally:
            self._seconds_left = max(self._seconds_left - (time.thread_time() - began), 1e-6)

    def _compiled(self, pattern: str) -> regex.Pattern[str]:
        began = time.thread_time()
        if len(pattern) > LENGTH_LIMIT or _AMBIGUOUS.search(pattern) or _nesting(pattern) > NESTING_LIMIT:
            raise UnsupportedAdapter(
                f"{self._what} has {pattern[:200]!r}: it is longer than {LENGTH_LIMIT} characters, nests more than {NESTING_LIMIT} groups, "
                "or has sets or braces that are ambiguous.",
                WRITE_OUT,
            )
        whole = rf"(.*\.)?({pattern})"
        try:
            re.compile(whole)
            compiled = regex.compile(whole, cache_pattern=False)
        except (re.error, regex.error, OverflowError, RecursionError, ValueError) as error:
            raise UnsupportedAdapter(
                f"{self._what} has {pattern!r}, which is not a valid regular expression ({error}).", WRITE_OUT
            ) from error
        self._seconds_left -= time.thread_time() - began
        if self._seconds_left <= 0:
            raise self._too_slow()
        return compiled

    def _too_slow(self) -> UnsupportedAdapter:
        return UnsupportedAdapter(
            f"{self._what} has regular expressions that take more than {SECONDS} seconds to match the modules.",
            WRITE_OUT,
        )


def _form(pattern: str) -> tuple[int, ...]:
    """Returns the length of a plain name and the places of its dots."""
    return len(pattern), *(at for at, character in enumerate(pattern) if character == ".")


def _with_dots(text: str, places: Iterable[int]) -> str:
    characters = list(text)
    for place in places:
        characters[place] = "."
    return "".join(characters)


def _nesting(pattern: str) -> int:
    deepest = depth = 0
    for match in _GROUPS.finditer(pattern):
        depth += {"(": 1, ")": -1}.get(match[1] or "", 0)
        deepest = max(deepest, depth)
    return deepest
