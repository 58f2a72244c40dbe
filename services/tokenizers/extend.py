"""Extending a SentencePiece vocabulary: pieces of another one are appended, and nothing else changes.

The rule is that of Chinese-LLaMA-Alpaca's merge_tokenizers.py (https://github.com/ymcui/Chinese-LLaMA-Alpaca): with it
LLaMA's 32,000 pieces and 20,000 Chinese ones become, byte for byte, the published tokenizers of 49,953 and 49,954.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.architectures.vocabulary import new_pieces
from services.tokenizers.sentencepiece import SentencePieceCodec, read_proto

SAMPLES = (
    "人工智能是计算机科学的一个分支。", "白日依山尽，黄河入海流。", "今天天气怎么样？我们一起去公园吧！",
    "The primary use of LLaMA is research on large language models.", "She sells sea shells by the sea shore, 3.14.",
)  # fmt: skip
"""Shown before and after: what an extension is for, and that it leaves English alone."""


@dataclass(frozen=True, slots=True)
class Extended:
    """An extended vocabulary, as a file, and how many pieces came from where."""

    model: bytes
    base: int
    added: int
    present: int

    @property
    def counts(self) -> dict[str, int]:
        """How many pieces the base had, were added (the padding token among them), were present already; and all."""
        return {
            "base": self.base, "added": self.added, "present": self.present, "total": self.base + self.added,
        }  # fmt: skip


def extend_vocabulary(base: bytes, addition: bytes, *, pad_token: str | None = None) -> Extended:
    """The base with each piece of the addition that it lacks appended, in order, as NORMAL with score 0.

    Args:
        pad_token: appended last, in the same way.

    Raises:
        UnreadableTokenizer: one of the two is no SentencePiece model.
        InvalidRequest: the padding token is a piece already, or nothing would be added.
    """
    proto, other = read_proto(base, "the base"), read_proto(addition, "the addition")
    pieces = [piece.piece.encode() for piece in proto.pieces]
    new = new_pieces(pieces, [piece.piece.encode() for piece in other.pieces], pad_token)
    for piece in new:
        _append(proto, piece.decode())
    present = len(other.pieces) - len(new) + (pad_token is not None)
    return Extended(proto.SerializeToString(), len(pieces), len(new), present)


def _append(proto: Any, piece: str) -> None:
    # The type is left out: NORMAL is its default, and so it stands in the published files.
    proto.pieces.add(piece=piece, score=0.0)


def sample_tokenizations(
    before: bytes, after: bytes, texts: Sequence[str] = SAMPLES
) -> list[dict[str, str | int]]:
    """How texts fall into pieces before and after, and into how many."""
    old, new = SentencePieceCodec(before, "the base"), SentencePieceCodec(after, "the result")
    samples: list[dict[str, str | int]] = []
    for text in texts:
        pieces = [[codec.piece(token_id) for token_id in codec.encode(text)] for codec in (old, new)]
        samples.append({
            "text": text, "tokens_before": len(pieces[0]), "tokens_after": len(pieces[1]),
            "before": " ".join(pieces[0]), "after": " ".join(pieces[1]),
        })  # fmt: skip
    return samples
