"""Extension of a SentencePiece vocabulary: pieces of another one are appended, and nothing else changes.

The rule is that of Chinese-LLaMA-Alpaca's merge_tokenizers.py (https://github.com/ymcui/Chinese-LLaMA-Alpaca): with it
LLaMA's 32,000 pieces and 20,000 Chinese ones become, byte for byte, the published tokenizers of 49,953 and 49,954.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.architectures.vocabulary import new_pieces
from services.kinds.extend_tokenizer import SampleTokenization, VocabularyCounts
from services.tokenizers.sentencepiece import SentencePieceCodec, read_proto

SAMPLES = (
    "人工智能是计算机科学的一个分支。", "白日依山尽，黄河入海流。", "今天天气怎么样？我们一起去公园吧！",
    "The primary use of LLaMA is research on large language models.", "She sells sea shells by the sea shore, 3.14.",
)  # fmt: skip
"""Texts that are shown before and after an extension: Chinese ones become shorter, English ones stay as they are."""


@dataclass(frozen=True, slots=True)
class Extended:
    """An extended vocabulary as a file, and the numbers of its pieces by origin."""

    model: bytes
    base: int
    added: int
    present: int

    @property
    def counts(self) -> VocabularyCounts:
        """Counts for a job's result."""
        total = self.base + self.added
        return VocabularyCounts(base=self.base, added=self.added, present=self.present, total=total)


def extend_vocabulary(base: bytes, addition: bytes, *, pad_token: str | None = None) -> Extended:
    """Returns the base with each piece of the addition that it lacks appended, in order, as NORMAL with score 0.

    Args:
        pad_token: Appended last, in the same way.

    Raises:
        UnreadableTokenizer: One of the two is not a SentencePiece model.
        InvalidRequest: The padding token is a piece already, or nothing would be added.
    """
    proto, other = read_proto(base, "The base"), read_proto(addition, "The addition")
    pieces = [piece.piece.encode() for piece in proto.pieces]
    new = new_pieces(pieces, [piece.piece.encode() for piece in other.pieces], pad_token)
    for piece in new:
        _append(proto, piece.decode())
    present = len(other.pieces) - len(new) + (pad_token is not None)
    return Extended(proto.SerializeToString(), len(pieces), len(new), present)


def _append(proto: Any, piece: str) -> None:
    # The type is omitted: NORMAL is its default, and the published files omit it too.
    proto.pieces.add(piece=piece, score=0.0)


def sample_tokenizations(
    before: bytes, after: bytes, texts: Sequence[str] = SAMPLES
) -> list[SampleTokenization]:
    """Returns the pieces of texts, and their numbers, with the vocabulary before and after."""
    old, new = SentencePieceCodec(before, "The base"), SentencePieceCodec(after, "The result")
    samples = []
    for text in texts:
        pieces = [[codec.piece(token_id) for token_id in codec.encode(text)] for codec in (old, new)]
        samples.append(SampleTokenization(
            text=text, tokens_before=len(pieces[0]), tokens_after=len(pieces[1]),
            before=" ".join(pieces[0]), after=" ".join(pieces[1]),
        ))  # fmt: skip
    return samples
