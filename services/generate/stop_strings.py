"""Text of an output while it grows: the part that can be published, and the end at a stop string."""

from collections.abc import Iterable

from services.tokenizers import StreamDecoder


class StopStringFilter:
    """Decodes tokens and searches for stop strings, including across the boundaries of tokens.

    Text that may be the beginning of a stop string is held back until it is certain, so that no part of a stop string is
    ever published.
    """

    def __init__(self, decoder: StreamDecoder, stop: Iterable[str]) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """True once a stop string is complete."""
        return self.matched is not None

    def feed(self, token_id: int) -> str:
        """Returns the text that becomes certain with this token. Sets `matched` to a stop string that is complete."""
        return self._take(self._decoder.feed(token_id), is_last=False)

    def finish(self) -> str:
        """Returns the text that was held back, when no token follows; nothing after a stop string."""
        return "" if self.stopped else self._take(self._decoder.flush(), is_last=True)

    def _take(self, text: str, *, is_last: bool) -> str:
        self._held += text
        found = [(position, stop) for stop in self._stop if (position := self._held.find(stop)) >= 0]
        if found:
            first, self.matched = min(found, key=lambda place: place[0])
            certain, self._held = self._held[:first], ""
        else:
            keep = 0 if is_last else self._possible_beginning()
            certain = self._held[: len(self._held) - keep]
            self._held = self._held[len(certain) :]
        self.text += certain
        return certain

    def _possible_beginning(self) -> int:
        """Returns the length of the longest suffix of the text with which a stop string begins."""
        longest = max(map(len, self._stop), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
