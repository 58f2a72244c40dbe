"""Small `tokenizer.model` files, encoded by hand: SentencePiece's protocol buffer and tiktoken's lines.

Field numbers: google/sentencepiece `sentencepiece_model.proto` (ModelProto.pieces = 1; piece = 1, score = 2, type = 3).
"""

import base64
import struct
from collections.abc import Sequence

UNKNOWN, CONTROL, NORMAL = 2, 3, 1


def piece_names(count: int) -> list[str]:
    """`<unk>`, `<s>`, `</s>` and made-up pieces; a longer list begins with a shorter one."""
    return ["<unk>", "<s>", "</s>", *(f"p{number}" for number in range(count - 3))]


def sentencepiece_file(pieces: Sequence[str]) -> bytes:
    """A SentencePiece model that holds these pieces and nothing else."""
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    messages = []
    for number, piece in enumerate(pieces):
        text = piece.encode()
        score = struct.pack("<f", -float(number))
        kind = kinds.get(piece, NORMAL)
        messages.append(b"\x0a" + _varint(len(text)) + text + b"\x15" + score + b"\x18" + _varint(kind))
    return b"".join(b"\x0a" + _varint(len(message)) + message for message in messages)


def tiktoken_file(count: int) -> bytes:
    """A tiktoken file of `count` ranks: the 256 bytes first, then made-up runs."""
    tokens = [bytes([n]) for n in range(256)] + [f"run{n}".encode() for n in range(max(0, count - 256))]
    return b"".join(base64.b64encode(t) + b" %d\n" % rank for rank, t in enumerate(tokens[:count]))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
