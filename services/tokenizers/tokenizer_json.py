"""`tokenizer.json`: the tokenizer of a `tokenizer.model` for the `tokenizers` library.

The parts are those that transformers' own conversions choose (`convert_slow_tokenizer.py`: LlamaConverter with
`legacy`, TikTokenConverter), with merges in the order of scores or ranks. Special tokens are split off first and each
text between them is encoded on its own, as the original code does.
"""

import json
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from services.architectures.bpe_merges import byte_alphabet, ranks_to_merges, scores_to_merges
from services.errors import UnreadableTokenizer
from services.tokenizers.sentencepiece import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, read_proto
from services.tokenizers.tiktoken import PATTERN, is_tiktoken, read_ranks
from services.tokenizers.tokenizer import Tokenizer

BPE_MODEL_TYPE = 2
"""TrainerSpec.ModelType of byte-pair models; 1 is a unigram model."""

UNSPLIT_SCORE = -1e4
"""Score of pieces that no text becomes, in unigram models."""


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is split off before anything else; a special one is omitted from decoded text."""

    token_id: int
    content: str
    special: bool


def build_table(
    model: bytes, name: str, tokenizer: Tokenizer, *, earlier: Mapping[str, Any] | None = None
) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a `tokenizer.model` for the `tokenizers` library.

    Args:
        model: Content of the file.
        name: Name of the file, for messages.
        tokenizer: The same tokenizer with its special tokens.
        earlier: An existing tokenizer.json; if it is of the same vocabulary, tokens that were added there stay.

    Raises:
        UnreadableTokenizer: The model is damaged, or a special token has the id of another piece.
    """
    table, added = _of_tiktoken(model, name) if is_tiktoken(model) else _of_sentencepiece(model, name)
    added += [
        Added(token_id, content, token_id in tokenizer.hidden_ids)
        for content, token_id in tokenizer.special_tokens.items()
    ]
    added += _carried(table, earlier or {}, {token.token_id for token in added})
    _add_tokens(table, added)
    _check_numbers(table, added)
    table.post_processor = _post_processor(table, tokenizer)
    return table


def table_to_json(table: tokenizers.Tokenizer) -> str:
    """Returns the file's text; merges are written as `left right`, which every version of `tokenizers` reads (pairs only since 0.20)."""
    content = json.loads(table.to_str())
    model = content["model"]
    if "merges" in model:
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


# ---- SentencePiece ------------------------------------------------------------------------------------


def _of_sentencepiece(model: bytes, name: str) -> tuple[tokenizers.Tokenizer, list[Added]]:
    proto = read_proto(model, name)
    bpe = proto.trainer_spec.model_type == BPE_MODEL_TYPE
    table = tokenizers.Tokenizer(_bpe(proto) if bpe else _unigram(proto))
    table.normalizer = normalizers.Sequence(_normalizers(proto.normalizer_spec))
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    table.decoder = decoders.Sequence(steps)
    own = [
        Added(number, piece.piece, piece.type != USER_DEFINED)
        for number, piece in enumerate(proto.pieces)
        if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    return table, own


def _bpe(proto: Any) -> models.BPE:
    merges = scores_to_merges({piece.piece: piece.score for piece in proto.pieces if piece.type == NORMAL})
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(proto.pieces)},
        merges=merges,
        unk_token=_unknown(proto),
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _unigram(proto: Any) -> models.Unigram:
    texts = (NORMAL, USER_DEFINED)
    pieces = [(p.piece, p.score if p.type in texts else UNSPLIT_SCORE) for p in proto.pieces]
    unknown = [piece.piece for piece in proto.pieces].index(_unknown(proto))
    return models.Unigram(pieces, unknown, proto.trainer_spec.byte_fallback)


def _unknown(proto: Any) -> str:
    return next((str(piece.piece) for piece in proto.pieces if piece.type == UNKNOWN), "<unk>")


def _normalizers(spec: Any) -> list[Any]:
    """Returns the steps of SentencePiece's normalization (normalizer.cc), in its order."""
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    return [*steps, normalizers.Replace(" ", "▁")]


# ---- tiktoken -----------------------------------------------------------------------------------------


def _of_tiktoken(model: bytes, name: str) -> tuple[tokenizers.Tokenizer, list[Added]]:
    ranks = read_ranks(model, name)
    alphabet = byte_alphabet()

    def shown(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    vocab = {shown(token): rank for token, rank in ranks.items()}
    merges = [(shown(left), shown(right)) for left, right in ranks_to_merges(ranks)]
    # Whole tokens first, as tiktoken: some of its tokens are not reached by merging.
    table = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    table.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    table.decoder = decoders.ByteLevel()
    return table, []


# ---- special tokens -----------------------------------------------------------------------------------


def _carried(table: tokenizers.Tokenizer, earlier: Mapping[str, Any], known: Container[int]) -> list[Added]:
    model = earlier.get("model")
    pieces = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(pieces, list):
        pieces = {
            entry[0]: number for number, entry in enumerate(pieces) if isinstance(entry, list) and entry
        }
    if pieces != table.get_vocab(with_added_tokens=False):
        return []
    tokens = earlier.get("added_tokens") or []
    return [Added(t["id"], t["content"], bool(t.get("special"))) for t in tokens if t["id"] not in known]


def _add_tokens(table: tokenizers.Tokenizer, added: Iterable[Added]) -> None:
    """Adds the tokens; ids beyond the model's own are assigned in sequence, so gaps get a name, as in transformers."""
    size = table.get_vocab_size(with_added_tokens=False)
    by_id = {token.token_id: token for token in added}
    inside = sorted(token_id for token_id in by_id if token_id < size)
    tokens = []
    for token_id in [*inside, *range(size, max(by_id, default=-1) + 1)]:
        token = by_id.get(token_id) or Added(token_id, f"<|reserved_token_{token_id}|>", True)
        tokens.append(AddedToken(token.content, normalized=False, special=token.special))
    table.add_tokens(tokens)


def _check_numbers(table: tokenizers.Tokenizer, added: Sequence[Added]) -> None:
    for token in added:
        number = table.token_to_id(token.content)
        if number != token.token_id:
            raise UnreadableTokenizer(
                f"{token.content!r} has the id {token.token_id} in the tokenizer's JSON files and {number} in tokenizer.model.",
                "Use the tokenizer's files that belong together.",
            )


def _post_processor(table: tokenizers.Tokenizer, tokenizer: Tokenizer) -> Any:
    to_text = processors.ByteLevel(trim_offsets=False)
    bos = tokenizer.bos_id
    begins = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    if tokenizer.add_bos and bos is not None:
        piece = tokenizer.piece(bos)
        begins = processors.TemplateProcessing(
            single=[f"{piece}:0", "$A:0"], pair=[f"{piece}:0", "$A:0", f"{piece}:1", "$B:1"],
            special_tokens=[(piece, bos)],
        )  # fmt: skip
    return processors.Sequence([to_text, begins]) if isinstance(table.decoder, decoders.ByteLevel) else begins
