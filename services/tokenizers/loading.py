"""Loading of a folder's tokenizer: its codec, found from the files' content, and its special tokens."""

from pathlib import Path

from services.architectures.llama3 import LLAMA_3_1_SPECIAL_TOKENS, LLAMA_3_SPECIAL_TOKENS
from services.architectures.tokenizer_files import ROLES, AddedToken, TokenizerFiles
from services.architectures.vocabulary import SIZE_LIMIT_BYTES
from services.errors import UnreadableTokenizer
from services.files.regular_file import read_regular
from services.tokenizers.huggingface import HuggingFaceCodec, complete_table, read_table
from services.tokenizers.sentencepiece import SentencePieceCodec
from services.tokenizers.tiktoken import TiktokenCodec, is_tiktoken
from services.tokenizers.tokenizer import Codec, SpecialTokens, Tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Returns the tokenizer of a model's folder, or of a `tokenizer.model` alone.

    SentencePiece and tiktoken models are run by their own libraries; a folder with neither by `tokenizers`.
    A file alone is read without the other files of its folder.

    Raises:
        UnreadableTokenizer: There is none, or one of its files is damaged.
    """
    folder = path if path.is_dir() else None
    model = path / "tokenizer.model" if folder else path
    if not model.is_file():
        if folder is None:
            raise UnreadableTokenizer(f"There is no tokenizer {path.name}.")
        return _load_huggingface(folder)
    content = read_regular(model, SIZE_LIMIT_BYTES, UnreadableTokenizer)
    files = TokenizerFiles(folder)
    if is_tiktoken(content):
        return _load_tiktoken(content, model.name, files)
    return _load_sentencepiece(content, model.name, files)


def _load_sentencepiece(content: bytes, name: str, files: TokenizerFiles) -> Tokenizer:
    codec = SentencePieceCodec(content, name)
    added = {token_id: AddedToken(codec.piece(token_id), True) for token_id in codec.control_ids()}
    added |= _added_tokens(files)
    bos, eos, pad = codec.role_ids()
    own_pad = files.config.get("pad_token_id")
    if pad is None and isinstance(own_pad, int) and own_pad >= 0:
        pad = own_pad
    return _assemble(codec, files, added, (bos, eos, pad))


def _load_tiktoken(content: bytes, name: str, files: TokenizerFiles) -> Tokenizer:
    codec = TiktokenCodec(content, name)
    names = LLAMA_3_1_SPECIAL_TOKENS if files.has_scaled_rope() else LLAMA_3_SPECIAL_TOKENS
    added = {codec.size + number: AddedToken(piece, True) for number, piece in enumerate(names)}
    added |= _added_tokens(files)
    ids = {token.content: token_id for token_id, token in added.items()}
    roles = ids.get("<|begin_of_text|>"), ids.get("<|end_of_text|>"), ids.get("<|finetune_right_pad_id|>")
    # Without a config, what Meta's tokenizer calls its stop tokens.
    ends = [ids[piece] for piece in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>") if piece in ids]
    return _assemble(codec, files, added, roles, default_eos_ids=frozenset(ends))


def _load_huggingface(folder: Path) -> Tokenizer:
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    ):
        raise UnreadableTokenizer(
            f"{folder.name} has no tokenizer: neither tokenizer.model nor tokenizer.json.",
            "Put the tokenizer's files of the original model into the folder.",
        )
    files = TokenizerFiles(folder)
    table = complete_table(read_table(folder), files.named_tokens(), files.added_tokens())
    codec = HuggingFaceCodec(table)
    first, name = codec.first_id, files.role("bos_token")
    bos = codec.id_of(name) if name else first
    # transformers ignores add_bos_token next to a tokenizer.json, whose own post-processor counts.
    add_bos = first is not None and first == bos
    return _assemble(codec, files, codec.added_tokens, (first, None, None), add_bos=add_bos)


def _added_tokens(files: TokenizerFiles) -> dict[int, AddedToken]:
    """Returns the added tokens by id; those that have a role are special too."""
    names = set(files.named_tokens())
    return {
        token_id: token._replace(special=token.special or token.content in names)
        for token_id, token in files.added_tokens().items()
    }


def _assemble(
    codec: Codec,
    files: TokenizerFiles,
    added: dict[int, AddedToken],
    roles: tuple[int | None, int | None, int | None],
    *,
    add_bos: bool | None = None,
    default_eos_ids: frozenset[int] = frozenset(),
) -> Tokenizer:
    """Returns the tokenizer of a codec and a folder's files, which take precedence over the codec.

    Args:
        add_bos: The codec's own rule; None is `add_bos_token`, or else True.
    """
    ids = {token.content: token_id for token_id, token in added.items()}
    for content in files.named_tokens():
        token_id = ids.get(content, codec.id_of(content))
        if token_id is not None:
            ids[content] = token_id
            added[token_id] = added.get(token_id, AddedToken(content, True))._replace(special=True)
    named = [files.role(role) for role in ROLES]
    bos, eos, pad = (ids.get(name, own) if name else own for name, own in zip(named, roles, strict=True))
    stated = files.add_bos()
    special = SpecialTokens(
        ids=ids,
        hidden=frozenset(token_id for token_id, token in added.items() if token.special),
        before=frozenset(token_id for token_id, token in added.items() if token.lstrip),
        after=frozenset(token_id for token_id, token in added.items() if token.rstrip),
        bos_id=bos,
        eos_id=eos,
        eos_ids=(files.eos_ids() or default_eos_ids) | ({eos} if eos is not None else frozenset()),
        pad_id=pad,
        add_bos=add_bos if add_bos is not None else stated is not False,
        plain=codec.plain_contents,
    )
    return Tokenizer(codec, special)
