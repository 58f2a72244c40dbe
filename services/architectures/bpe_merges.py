"""Merge tables of byte-pair models of `tokenizers`: the pairs of pieces that are joined, in order.

Neither SentencePiece nor tiktoken writes such a table down. Both join the two neighbours whose joint piece is best
(highest score, lowest rank), the leftmost first among equally good ones; a table orders all pairs strictly.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

Piece = TypeVar("Piece", str, bytes)


def scores_to_merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns the merges of a SentencePiece byte-pair model from its NORMAL pieces and their scores, in the order of ids.

    If all scores differ, the table does the same as SentencePiece (bpe_model.cc, Model::SampleEncode). Among pieces of
    one score SentencePiece takes the leftmost pair of the text, which a table cannot express: a pair takes precedence
    there if its left piece begins pieces more often than it ends them. On 1,500 lines of random words of Chinese-LLaMA's vocabulary that
    leaves 26 lines different; ordered by length, as transformers does, it is 68.
    """
    numbers = {piece: number for number, piece in enumerate(scores)}
    pairs = list(_pairs(scores))
    counts = Counter(scores.values())
    tied = [pair for pair in pairs if counts[scores["".join(pair)]] > 1]
    begins, ends = Counter(left for left, _ in tied), Counter(right for _, right in tied)

    def order(pair: tuple[str, str]) -> tuple[float, float, int, int, int]:
        left, right = pair
        piece = left + right
        score = scores[piece]
        ending = (ends[left] - begins[left]) / (ends[left] + begins[left] + 2) if counts[score] > 1 else 0.0
        return -score, ending, -len(left), -len(right), numbers[piece]

    return sorted(pairs, key=order)


def ranks_to_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Returns the merges of a tiktoken vocabulary, by the rank of the joined piece.

    Every split of a token into two tokens is a merge (so does transformers' TikTokenConverter): tiktoken looks at the
    rank of the joint bytes only (tiktoken `src/lib.rs`, byte_pair_merge).
    """
    return sorted(_pairs(ranks), key=lambda pair: (ranks[pair[0] + pair[1]], ranks[pair[0]], ranks[pair[1]]))


def _pairs(pieces: Mapping[Piece, object]) -> Iterator[tuple[Piece, Piece]]:
    for piece in pieces:
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in pieces and right in pieces:
                yield left, right


def byte_alphabet() -> Sequence[str]:
    """Returns the character for each byte in `tokenizers`' byte-level models (GPT-2's `bytes_to_unicode`).

    Printable bytes are themselves; the others have the characters from U+0100 on.
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]
