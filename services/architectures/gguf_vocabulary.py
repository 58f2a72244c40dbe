"""Tokenizer of a GGUF file: what its metadata says, checked before any work is done.

Keys, types of tokens and defaults are llama.cpp's (ggml-org/llama.cpp `src/llama-vocab.cpp`, llama_vocab::impl::load, and
`docs/gguf.md` of ggml).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.architectures.bpe_merges import byte_alphabet
from services.architectures.json_vocabulary import pieces_as_bytes
from services.architectures.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from services.architectures.vocabulary import SIZE_LIMIT_BYTES, Vocabulary
from services.errors import UnreadableTokenizer
from services.files.gguf_files import GgufModel
from services.files.gguf_header import GgufArray

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens, which are SentencePiece's too."""

TOKENS, SCORES, TYPES, MERGES = (
    f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "token_type", "merges")
)
ARRAYS = (TOKENS, SCORES, TYPES, MERGES)
"""Keys of the arrays that a tokenizer is made of."""

BYTE_PIECES = {f"<0x{byte:02X}>" for byte in range(256)}
"""Pieces of SentencePiece for bytes of characters that it does not know."""

ADDED_SCORE = -1000.0
"""Score that llama.cpp's converter gives to tokens that are not pieces of the SentencePiece model."""

ROLES: Mapping[str, str] = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}  # fmt: skip
"""Keys of the ids, by the names of the roles in tokenizer_config.json."""

ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Keys of the tokens that end an output: of the text, of a turn, of a message."""

OTHER_KINDS: Mapping[str, str] = {
    "bert": "WordPiece", "t5": "unigram", "rwkv": "RWKV", "plamo2": "PLaMo", "none": "no", "gemma4": "Gemma 4",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufVocabulary:
    """Tokens of a GGUF file in the order of their ids, without the padding at their end.

    Attributes:
        scores: One per token of a SentencePiece vocabulary, else empty.
        types: One per token.
        merges: Pairs of a byte-level vocabulary in order, else empty.
        pre_tokenizer: Splitting of a byte-level vocabulary, None for SentencePiece.
        pieces: Number of tokens that are the model's own; added tokens follow them.
        ids: Ids by role ("bos_token").
        ends: Ids that end an output, the tokenizer's own first.
        add_space: SentencePiece: a space is put before a text.
    """

    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    pre_tokenizer: PreTokenizer | None
    pieces: int
    ids: Mapping[str, int]
    ends: tuple[int, ...]
    add_bos: bool
    add_eos: bool
    add_space: bool
    remove_extra_spaces: bool
    chat_template: str | None

    @property
    def is_sentencepiece(self) -> bool:
        """True for a SentencePiece vocabulary, False for a byte-level one."""
        return self.pre_tokenizer is None

    @property
    def vocabulary(self) -> Vocabulary:
        """The pieces as those of the tokenizer.model or tokenizer.json that is rebuilt."""
        if not self.is_sentencepiece:
            pieces = tuple(pieces_as_bytes(self.tokens))
            return Vocabulary(
                "byte-level", pieces, _digest(pieces), file="tokenizer.json", model_pieces=self.pieces
            )
        pieces = tuple(token.encode() for token in self.tokens[: self.pieces])
        return Vocabulary("sentencepiece", pieces, _digest(pieces))


def _digest(pieces: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\n".join(pieces)).hexdigest()


def read_gguf_vocabulary(model: GgufModel) -> GgufVocabulary:
    """Returns the tokenizer of a file whose header was read with the values of `ARRAYS`.

    Raises:
        UnreadableTokenizer: It cannot be rebuilt: the message says why.
    """
    metadata = model.metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("llama", "gpt2"):
        raise _unbuildable(
            model, f"tokenizer.ggml.model is {kind!r} ({OTHER_KINDS.get(str(kind), 'unknown')})",
            "taken are 'llama' (SentencePiece) and 'gpt2' (byte-level)",
        )  # fmt: skip
    tokens, types = _tokens(model)
    return (_sentencepiece if kind == "llama" else _byte_level)(model, tokens, types)


def _sentencepiece(model: GgufModel, tokens: Sequence[str], types: Sequence[int]) -> GgufVocabulary:
    scores = _array(model, SCORES, (int, float))
    if len(scores) < len(tokens) or not all(map(math.isfinite, scores)):
        raise _unbuildable(
            model, f"it has {len(tokens)} tokens and {len(scores)} scores", "each token needs a number"
        )
    pieces = len(tokens)
    while pieces and scores[pieces - 1] == ADDED_SCORE and types[pieces - 1] in (CONTROL, USER_DEFINED):
        pieces -= 1
    own = types[:pieces]
    in_bytes = {token for token, kind in zip(tokens, own, strict=False) if kind == BYTE}
    if own.count(UNKNOWN) != 1 or NORMAL not in own or in_bytes not in (set(), BYTE_PIECES):
        raise _unbuildable(
            model, f"of its pieces {own.count(UNKNOWN)} are unknown, {own.count(NORMAL)} normal, {len(in_bytes)} bytes",
            "SentencePiece needs one, some, and none or <0x00> to <0xFF>",
        )  # fmt: skip
    # llama.cpp's converter writes the spaces of tokens that were added as spaces, SentencePiece as "▁"
    spelled = [
        token.replace(" ", "▁") if number < pieces and types[number] == USER_DEFINED else token
        for number, token in enumerate(tokens)
    ]
    _check_different(model, spelled)
    return _assembled(model, spelled, types, scores=tuple(scores[: len(tokens)]), pieces=pieces)


def _byte_level(model: GgufModel, tokens: Sequence[str], types: Sequence[int]) -> GgufVocabulary:
    name = model.metadata.get("tokenizer.ggml.pre")
    pre_tokenizer = PRE_TOKENIZERS.get(str(name))
    if pre_tokenizer is None:
        raise _unbuildable(
            model, f"tokenizer.ggml.pre is {name!r}, so that its splitting of text is not known" if name in (None, "default")
            else f"tokenizer.ggml.pre is {name!r}",
            f"known are {', '.join(PRE_TOKENIZERS)}",
        )  # fmt: skip
    merges = tuple(_pair(model, merge) for merge in _array(model, MERGES, (str,)))
    known = {token for token, kind in zip(tokens, types, strict=True) if kind not in (CONTROL, UNUSED)}
    odd = next((m for m in merges if not {m[0], m[1], m[0] + m[1]} <= known), None)
    if odd is not None:
        raise _unbuildable(
            model, f"the merge {odd[0]!r} + {odd[1]!r} is not of its tokens", "all three must be tokens"
        )
    alphabet = set(byte_alphabet())
    strange = next(
        (t for t, kind in zip(tokens, types, strict=True) if kind == NORMAL and not set(t) <= alphabet), None
    )
    if strange is not None:
        raise _unbuildable(model, f"the token {strange!r} is not written in bytes", "byte-level tokens are")
    pieces = 1 + max((n for n, kind in enumerate(types) if kind in (NORMAL, UNUSED)), default=-1)
    _check_different(model, tokens)
    return _assembled(model, tokens, types, merges=merges, pre_tokenizer=pre_tokenizer, pieces=pieces)


def _assembled(
    model: GgufModel, tokens: Sequence[str], types: Sequence[int], **of_kind: Any
) -> GgufVocabulary:
    pre_tokenizer = of_kind.get("pre_tokenizer")
    by_default = pre_tokenizer.adds_bos if pre_tokenizer else True
    template = model.metadata.get("tokenizer.chat_template")
    ends = [found for key in ENDS if (found := _id(model, key, len(tokens))) is not None]
    ids = {role: found for role, key in ROLES.items() if (found := _id(model, key, len(tokens))) is not None}
    return GgufVocabulary(
        tokens=tuple(tokens), types=tuple(types), ids=ids, ends=tuple(dict.fromkeys(ends)),
        add_bos=_flag(model, "add_bos_token", by_default) and "bos_token" in ids,
        add_eos=_flag(model, "add_eos_token", False) and "eos_token" in ids,
        add_space=_flag(model, "add_space_prefix", pre_tokenizer is None),
        remove_extra_spaces=_flag(model, "remove_extra_whitespaces", False),
        chat_template=template if isinstance(template, str) else None,
        **{"scores": (), "merges": (), "pre_tokenizer": None, **of_kind},
    )  # fmt: skip


def _tokens(model: GgufModel) -> tuple[Sequence[str], Sequence[int]]:
    """Returns tokens and types without the padding at their end, which no text becomes."""
    tokens = _array(model, TOKENS, (str,))
    types = _array(model, TYPES, (int,)) if TYPES in model.metadata else (NORMAL,) * len(tokens)
    if len(types) != len(tokens) or not set(types) <= set(range(NORMAL, BYTE + 1)):
        raise _unbuildable(
            model, f"it has {len(tokens)} tokens and {len(types)} types", "each needs one from 1 to 6"
        )
    size = len(tokens)
    while size and types[size - 1] == UNUSED:
        size -= 1
    if not size:
        raise _unbuildable(model, "it has no tokens", "a model needs some")
    if sum(map(len, tokens)) > SIZE_LIMIT_BYTES // 2:
        raise _unbuildable(model, "its tokens are longer than any tokenizer's", "at most 16 MiB are read")
    return tokens[:size], types[:size]


def _array(model: GgufModel, key: str, kinds: tuple[type, ...]) -> Sequence[Any]:
    found = model.metadata.get(key)
    values = found.values if isinstance(found, GgufArray) else None
    if values is None or not all(
        isinstance(value, kinds) and not isinstance(value, bool) for value in values
    ):
        raise _unbuildable(model, f"it has no {key}", "the tokenizer is made of them")
    return values


def _check_different(model: GgufModel, tokens: Sequence[str]) -> None:
    token, count = Counter(tokens).most_common(1)[0]
    if count > 1:
        raise _unbuildable(model, f"{count} of its tokens are {token!r}", "tokens must differ")
    odd = next((token for token in tokens if not token or "\0" in token), None)
    if odd is not None:
        raise _unbuildable(model, f"a token is {odd!r}", "tokens have text, without null characters")


def _pair(model: GgufModel, merge: str) -> tuple[str, str]:
    at = merge.find(" ", 1)
    if at < 0:
        raise _unbuildable(model, f"the merge {merge!r} is not two tokens", "they are separated by a space")
    return merge[:at], merge[at + 1 :]


def _id(model: GgufModel, key: str, size: int) -> int | None:
    found = model.metadata.get(f"tokenizer.ggml.{key}")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int):
        raise _unbuildable(model, f"tokenizer.ggml.{key} is {found!r}", "it must be an id")
    if not 0 <= found < size:
        raise _unbuildable(model, f"tokenizer.ggml.{key} is {found}", f"the last token has the id {size - 1}")
    return found


def _flag(model: GgufModel, key: str, default: bool) -> bool:
    found = model.metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(found, bool):
        raise _unbuildable(model, f"tokenizer.ggml.{key} is {found!r}", "it must be true or false")
    return found


def _unbuildable(model: GgufModel, found: str, needed: str) -> UnreadableTokenizer:
    return UnreadableTokenizer(
        f"The tokenizer of {model.name} cannot be rebuilt: {found}; {needed}.",
        "Use the model's Hugging Face files, or a GGUF file that a current llama.cpp has made.",
    )
