"""Tokenizers of Llama 3: byte-pair ranks in tiktoken's text format.

The pattern is that of `llama/tokenizer.py` in Meta's `llama3` repository. The ranks of 3 and 3.1 are the same file; only the
names of a few special tokens differ (services/architectures/llama3.py).
"""

import base64
import binascii
import codecs
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import tiktoken

from services.errors import UnreadableTokenizer
from services.tokenizers.tokenizer import encode_apart

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_RUN = re.compile(r"\s+|\S+")
_MAX_CHARACTERS = 400_000
_MAX_RUN = 25_000
_FIRST_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def is_tiktoken(content: bytes) -> bool:
    """Returns True if a `tokenizer.model` is a table of ranks: lines of a base64 token and its number."""
    return _FIRST_LINE.match(content) is not None


class TiktokenCodec:
    """Codec of plain text by byte-pair ranks."""

    def __init__(self, content: bytes, name: str) -> None:
        """Loads a table of ranks; `name` is that of its file, for messages.

        Raises:
            UnreadableTokenizer: A line is damaged, or a rank is missing.
        """
        self._encoding = tiktoken.Encoding(
            name=name, pat_str=PATTERN, mergeable_ranks=read_ranks(content, name), special_tokens={}
        )

    @property
    def size(self) -> int:
        return self._encoding.n_vocab

    @property
    def plain_contents(self) -> frozenset[str]:
        return frozenset()

    def encode(self, text: str) -> list[int]:
        parts = split_long_runs(text)
        return [token_id for part in parts for token_id in self._encoding.encode_ordinary(part)]

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        return encode_apart(self, parts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode_bytes(ids).decode("utf-8", errors="replace")

    def bytes_of(self, token_id: int) -> bytes:
        return self._encoding.decode_single_token_bytes(token_id)

    def pieces_as_bytes(self) -> list[bytes]:
        """Returns the bytes of each token."""
        return [self.bytes_of(token_id) for token_id in range(self.size)]

    def piece(self, token_id: int) -> str:
        return self.bytes_of(token_id).decode("utf-8", errors="replace")

    def id_of(self, piece: str) -> int | None:
        try:
            return self._encoding.encode_single_token(piece)
        except KeyError:
            return None

    def stream(self) -> "TiktokenStream":
        return TiktokenStream(self)


class TiktokenStream:
    """Stream decoder of bytes to characters."""

    def __init__(self, codec: TiktokenCodec) -> None:
        self._codec = codec
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        return self._utf8.decode(self._codec.bytes_of(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


def split_long_runs(text: str) -> Iterator[str]:
    """Yields the text in parts, cut as Meta's tokenizer cuts it: tiktoken crashes on a million spaces.

    A part has at most 400,000 characters and no run of space, or of anything else, longer than 25,000.
    """
    for start in range(0, len(text), _MAX_CHARACTERS):
        part = text[start : start + _MAX_CHARACTERS]
        runs = (match.span() for match in _RUN.finditer(part))
        cuts = [cut for begin, end in runs for cut in range(begin + _MAX_RUN, end, _MAX_RUN)]
        yield from (part[begin:end] for begin, end in pairwise([0, *cuts, len(part)]))


def read_ranks(content: bytes, name: str) -> dict[bytes, int]:
    """Returns the rank of each token's bytes. tiktoken's own reader would copy the file into a cache folder.

    Raises:
        UnreadableTokenizer: A line is damaged, or a rank is missing.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise UnreadableTokenizer(
                f"Line {number} of {name} is not a token and its rank: {line[:40]!r}."
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UnreadableTokenizer(
            f"{name} has {len(ranks)} tokens whose ranks do not run from 0 to {len(ranks) - 1}.",
            "The file is damaged: fetch it again.",
        )
    return ranks
