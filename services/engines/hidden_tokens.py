"""Tokens that a stream of llama.cpp leaves out: those that end within a character.

An event comes only when the text is valid UTF-8 again, with the id of its last token alone (`tools/server/server-context.cpp`,
process_token). The event's text and its count of tokens determine the others where only one series of tokens writes these bytes.
"""

from collections.abc import Mapping, Sequence

REPLACEMENT = "\ufffd"
"""Sent in place of invalid bytes, so that nothing can be found from it."""

LONGEST = 16
"""Most tokens that are searched for."""


FIRST_BYTES: Mapping[range, int] = {range(0xC0, 0xE0): 2, range(0xE0, 0xF0): 3, range(0xF0, 0xF8): 4}
"""Bytes of a character by its first one."""


class HiddenTokens:
    """Finds left-out tokens of one vocabulary."""

    def __init__(self, token_bytes: Sequence[bytes]) -> None:
        """`token_bytes` has the bytes of each id, b"" for special tokens, which are never found."""
        self._bytes = token_bytes
        ids: dict[bytes, list[int]] = {}
        for token_id, piece in enumerate(token_bytes):
            if piece:
                ids.setdefault(piece, []).append(token_id)
        self._ids: Mapping[bytes, list[int]] = ids
        self._widest = max(map(len, ids), default=0)

    @property
    def rows(self) -> int:
        """Number of tokens of the vocabulary."""
        return len(self._bytes)

    @property
    def visible(self) -> int:
        """Id of a token that is never left out."""
        return next(iter(self._ids.get(b"a") or (0,)))

    def visible_ends(self, ids: Sequence[int]) -> list[bool]:
        """Returns True for each of the tokens of an answer after which its text does not end within a character."""
        content, complete = b"", []
        for token_id in ids:
            content += self._piece(token_id)
            complete.append(not _ends_within_character(content))
        return complete

    def _piece(self, token_id: int) -> bytes:
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def find(self, text: str, count: int, last: int) -> list[int] | None:
        """Returns the `count` tokens before the token `last`, with which they write the text; None unless exactly one series does."""
        piece = self._piece(last)
        whole = text.encode()
        if count > LONGEST or REPLACEMENT in text or not piece or not whole.endswith(piece):
            return None
        found = self._series(whole.removesuffix(piece), count)
        return found[0] if len(found) == 1 else None

    def _series(self, content: bytes, count: int) -> list[list[int]]:
        """Returns the series of `count` tokens that write the content, at most two of them."""
        if not content or not count:
            return [[]] if not content and not count else []
        found: list[list[int]] = []
        for end in range(1, min(len(content) - count + 1, self._widest) + 1):
            for token_id in self._ids.get(content[:end], ()):
                found += [[token_id, *rest] for rest in self._series(content[end:], count - 1)]
                if len(found) > 1:
                    return found
        return found


def _ends_within_character(content: bytes) -> bool:
    """Returns what llama.cpp finds (`common/common.cpp` validate_utf8), which passes over bytes that begin no character."""
    last = content[-1 : -1 - max(FIRST_BYTES.values()) : -1]
    return any(
        length < needed
        for length, byte in enumerate(last, start=1)
        for first, needed in FIRST_BYTES.items()
        if byte in first
    )
