"""Memory of keys and values of all sequences of a worker, within one limit: sequences wait for it in line.

Each sequence has a claim, the most that it will hold, and holds what it has so far. Sequences are admitted and grow as long as each could
still take its whole claim once those before it have ended (the banker's algorithm). The first one therefore never waits, each
becomes the first at last, and none loses what it holds. Beginnings of prompts take what is left, and make way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from services.generate.prefix_cache import PrefixCache

PREFIX_SHARE = 4
"""The limit, divided by the most that beginnings of prompts take."""


@dataclass(slots=True, eq=False)
class Holding:
    """Bytes of one sequence: `held` now, `claim` at most. Those with the same `table` are rows of one, as wide as the widest."""

    claim: int
    held: int
    table: object | None = None


class KVMemory:
    """Keys and values of at most `limit_bytes`, of all models of a worker.

    While a row is copied to a larger place, its old one exists too: up to one sequence comes in addition for that time.
    """

    def __init__(self, limit_bytes: int, *, prefix_bytes: int | None = None) -> None:
        """`prefix_bytes` limits the beginnings of prompts; None is a share of the limit."""
        self._prefix_bytes = limit_bytes // PREFIX_SHARE if prefix_bytes is None else prefix_bytes
        self._limit_bytes = limit_bytes
        self.prefixes = PrefixCache(self._prefix_bytes)
        self._holdings: list[Holding] = []  # in the order of their admission
        self._waiting: set[int] = set()
        self._numbers = count()

    @property
    def limit_bytes(self) -> int:
        """Most bytes of keys and values together."""
        return self._limit_bytes

    def set_limit(self, limit_bytes: int) -> None:
        """Sets the limit; what is held already stays."""
        self._limit_bytes, self._prefix_bytes = limit_bytes, limit_bytes // PREFIX_SHARE
        self._make_way()

    @property
    def held_bytes(self) -> int:
        """Bytes that sequences hold now. May be called from another thread."""
        return _total(self._holdings.copy())

    @property
    def waiting(self) -> int:
        """Number of requests that wait for memory."""
        return len(self._waiting)

    def next_number(self) -> int:
        """Returns the place in line of a new request."""
        return next(self._numbers)

    def admit(self, number: int, holdings: Sequence[Holding]) -> bool:
        """Takes sequences of the request with this place in line; returns False while they, or a request before them, must wait."""
        found = [*self._holdings, *holdings]
        if any(other < number for other in self._waiting) or not self._is_safe(found):
            self._waiting.add(number)
            return False
        self._waiting.discard(number)
        self._holdings = found
        self._make_way()
        return True

    def is_waiting(self, number: int) -> bool:
        """Returns True if the request with this place in line waits for memory."""
        return number in self._waiting

    def leave_line(self, number: int) -> None:
        """Takes a request out of the line."""
        self._waiting.discard(number)

    def grow(self, holding: Holding, held: int) -> bool:
        """Lets a sequence hold more; returns False while those before it could then not take their claims."""
        before, holding.held = holding.held, held
        if not self._is_safe(self._holdings):
            holding.held = before
            return False
        self._make_way()
        return True

    def release(self, holding: Holding) -> None:
        """Frees the memory of a sequence."""
        self._holdings.remove(holding)
        self._make_way()

    def _is_safe(self, holdings: Sequence[Holding]) -> bool:
        """Returns True if each sequence could take its claim once those before it have ended."""
        return all(
            _total([Holding(first.claim, first.claim, first.table), *holdings[at + 1 :]]) <= self._limit_bytes
            for at, first in enumerate(holdings)
        )

    def _make_way(self) -> None:
        self.prefixes.limit_to(max(0, min(self._prefix_bytes, self._limit_bytes - self.held_bytes)))


def _total(holdings: Sequence[Holding]) -> int:
    """Returns the bytes that sequences hold together."""
    widest: dict[int, int] = {}
    for holding in holdings:
        widest[id(holding.table)] = max(widest.get(id(holding.table), 0), holding.held)
    return sum(one.held if one.table is None else widest[id(one.table)] for one in holdings)
