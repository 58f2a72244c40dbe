"""The text of an answer as it grows: what may be given out, and where a stop text ends it."""

from collections.abc import Iterable

from services.tokenizers import StreamDecoder


class StopStringFilter:
    """Turns tokens into text and looks for stop texts, also across the borders of tokens.

    Whatever may be the beginning of a stop text is held back until it is certain, so a stop text is never
    given out in part.
    """

    def __init__(self, decoder: StreamDecoder, stop: Iterable[str]) -> None:
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""
        self.stopped = False

    def feed(self, token_id: int) -> str:
        """The text that this token makes certain. Sets `stopped` where a stop text is complete."""
        return self._take(self._decoder.feed(token_id), is_last=False)

    def finish(self) -> str:
        """What is left when no token follows; nothing after a stop text."""
        return "" if self.stopped else self._take(self._decoder.flush(), is_last=True)

    def _take(self, text: str, *, is_last: bool) -> str:
        self._held += text
        found = [position for stop in self._stop if (position := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)], ""
        else:
            keep = 0 if is_last else self._possible_beginning()
            certain = self._held[: len(self._held) - keep]
            self._held = self._held[len(certain) :]
        self.text += certain
        return certain

    def _possible_beginning(self) -> int:
        """Length of the longest end of the text that a stop text begins with."""
        longest = max(map(len, self._stop), default=0) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
