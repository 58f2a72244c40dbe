"""Which tokenizer a folder holds, found from the files' content, and its special tokens."""

import json
from pathlib import Path
from typing import Any

from services.architectures.llama3 import LLAMA_3_1_SPECIAL_TOKENS, LLAMA_3_SPECIAL_TOKENS
from services.errors import UnreadableTokenizer
from services.tokenizers.huggingface import HuggingFaceCodec
from services.tokenizers.sentencepiece import SentencePieceCodec
from services.tokenizers.tiktoken import TiktokenCodec, is_tiktoken
from services.tokenizers.tokenizer import Codec, SpecialTokens, Tokenizer

_ROLES = ("bos_token", "eos_token", "pad_token")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model's folder, or of a `tokenizer.model` alone.

    SentencePiece and tiktoken models are used themselves wherever they are; only a folder with neither is
    given to transformers. A file alone is read without what lies beside it.

    Raises:
        UnreadableTokenizer: there is none, or a file of it is damaged.
    """
    folder = path if path.is_dir() else None
    model = path / "tokenizer.model" if folder else path
    if not model.is_file():
        if folder is None:
            raise UnreadableTokenizer(f"There is no tokenizer {path.name}.")
        return _load_huggingface(folder)
    content = model.read_bytes()
    facts = _Facts(folder)
    if is_tiktoken(content):
        return _load_tiktoken(content, model.name, facts)
    return _load_sentencepiece(content, model.name, facts)


class _Facts:
    """What the small JSON files of a model's folder say about special tokens; each of them is optional."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.tokenizer = self._read("tokenizer_config.json")
        self.special_map = self._read("special_tokens_map.json")
        self.config = self._read("config.json")
        self.generation = self._read("generation_config.json")
        self.params = self._read("params.json")

    def _read(self, name: str) -> dict[str, Any]:
        file = self._folder / name if self._folder else None
        if file is None or not file.is_file():
            return {}
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UnreadableTokenizer(f"{name} is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise UnreadableTokenizer(f"{name} holds a {type(content).__name__} where an object was needed.")
        return content

    def added_tokens(self) -> dict[int, tuple[str, bool]]:
        """Id to content and whether it is special, from wherever they are listed."""
        added: dict[int, tuple[str, bool]] = {}
        names = set(self.named_tokens())
        for content, token_id in self._read("added_tokens.json").items():
            added[int(token_id)] = str(content), content in names
        listed = self.tokenizer.get("added_tokens_decoder") or {}
        for token_id, entry in listed.items():
            added[int(token_id)] = (
                str(entry["content"]),
                bool(entry.get("special")) or entry["content"] in names,
            )
        return added

    def named_tokens(self) -> list[str]:
        """The contents of all tokens that have a role, or are called special."""
        named = [self.role(role) for role in _ROLES]
        for source in (self.special_map, self.tokenizer):
            named += [token_content(entry) for entry in source.get("additional_special_tokens") or []]
        return [content for content in named if content]

    def role(self, role: str) -> str | None:
        """The content of `bos_token`, `eos_token` or `pad_token`."""
        return token_content(self.tokenizer.get(role)) or token_content(self.special_map.get(role))

    def add_bos(self) -> bool | None:
        found = self.tokenizer.get("add_bos_token")
        return found if isinstance(found, bool) else None

    def eos_ids(self) -> frozenset[int]:
        """What the model's config says ends an answer; `generation_config.json` goes before `config.json`."""
        found = self.generation.get("eos_token_id", self.config.get("eos_token_id"))
        return frozenset([found] if isinstance(found, int) else found or [])

    def is_llama_3_1(self) -> bool:
        """Whether the rotary frequencies are scaled, which began with 3.1."""
        rope = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else None
        params = self.params.get("model", self.params)
        return kind == "llama3" or bool(params.get("use_scaled_rope"))


def token_content(entry: Any) -> str | None:
    """Of a token written as a text or as an object with `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _load_sentencepiece(content: bytes, name: str, facts: _Facts) -> Tokenizer:
    codec = SentencePieceCodec(content, name)
    added = {token_id: (codec.piece(token_id), True) for token_id in codec.control_ids()}
    added |= facts.added_tokens()
    bos, eos, pad = codec.role_ids()
    own_pad = facts.config.get("pad_token_id")
    if pad is None and isinstance(own_pad, int) and own_pad >= 0:
        pad = own_pad
    return _assemble(codec, facts, added, (bos, eos, pad))


def _load_tiktoken(content: bytes, name: str, facts: _Facts) -> Tokenizer:
    codec = TiktokenCodec(content, name)
    names = LLAMA_3_1_SPECIAL_TOKENS if facts.is_llama_3_1() else LLAMA_3_SPECIAL_TOKENS
    added = {codec.size + number: (piece, True) for number, piece in enumerate(names)}
    added |= facts.added_tokens()
    ids = {piece: token_id for token_id, (piece, _) in added.items()}
    roles = ids.get("<|begin_of_text|>"), ids.get("<|end_of_text|>"), ids.get("<|finetune_right_pad_id|>")
    # Without a config, what Meta's tokenizer calls its stop tokens.
    ends = [ids[piece] for piece in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>") if piece in ids]
    return _assemble(codec, facts, added, roles, default_eos_ids=frozenset(ends))


def _load_huggingface(folder: Path) -> Tokenizer:
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    ):
        raise UnreadableTokenizer(
            f"{folder.name} has no tokenizer: neither tokenizer.model nor tokenizer.json.",
            "Put the tokenizer's files of the original model into the folder.",
        )
    codec = HuggingFaceCodec(folder)
    added = {
        token_id: (str(token.content), bool(token.special)) for token_id, token in codec.added_tokens.items()
    }
    return _assemble(codec, _Facts(folder), added, codec.role_ids, add_bos=codec.begins_with_bos())


def _assemble(
    codec: Codec,
    facts: _Facts,
    added: dict[int, tuple[str, bool]],
    roles: tuple[int | None, int | None, int | None],
    *,
    add_bos: bool = True,
    default_eos_ids: frozenset[int] = frozenset(),
) -> Tokenizer:
    """One tokenizer from what its codec and its folder say; the folder goes before the codec."""
    ids = {content: token_id for token_id, (content, _) in added.items()}
    for content in facts.named_tokens():
        token_id = ids.get(content, codec.id_of(content))
        if token_id is not None:
            ids[content] = token_id
            added[token_id] = content, True
    named = [facts.role(role) for role in _ROLES]
    bos, eos, pad = (ids.get(name, own) if name else own for name, own in zip(named, roles, strict=True))
    explicit = facts.add_bos()
    special = SpecialTokens(
        ids=ids,
        hidden=frozenset(token_id for token_id, (_, is_special) in added.items() if is_special),
        bos_id=bos,
        eos_id=eos,
        eos_ids=(facts.eos_ids() or default_eos_ids) | ({eos} if eos is not None else frozenset()),
        pad_id=pad,
        add_bos=add_bos if explicit is None else explicit,
    )
    return Tokenizer(codec, special)
