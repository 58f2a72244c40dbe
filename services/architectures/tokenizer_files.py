"""JSON files around a tokenizer, as transformers writes them: roles of tokens, added tokens, the chat template."""

from collections.abc import Mapping
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from services.architectures.config import rope_type_of, unwrap_params
from services.architectures.json_vocabulary import read_added_entries
from services.errors import UnreadableTokenizer
from services.files.json_file import Json, read_json_if_present
from services.files.regular_file import read_regular

CHAT_TEMPLATE = "chat_template.jinja"
"""File of the chat template; it takes precedence over the one in `tokenizer_config.json`."""

MORE_TEMPLATES = "additional_chat_templates"
"""Folder of templates for other purposes, for example tools or retrieval."""

TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    CHAT_TEMPLATE, "chat_template.json",
)  # fmt: skip
"""Files of a model folder that belong to its tokenizer."""

TEMPLATE_LIMIT_BYTES = 2**20
"""Largest `chat_template.jinja`. Those of models with tools take 20 kilobytes."""

ROLES = ("bos_token", "eos_token", "pad_token")

EXTRA_TOKENS = ("additional_special_tokens", "extra_special_tokens")
"""Keys of the special tokens without a role: before and since transformers 5, which also takes an object of names."""


class AddedToken(NamedTuple):
    """Token outside of the pieces; a special one is left out of decoded text.

    `lstrip` and `rstrip` take in the white space before and after it; a normalized one is searched in normalized text.
    """

    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class TokenizerFiles:
    """Content of a folder's JSON files; each of them is optional, and read when it is needed.

    Raises:
        UnreadableTokenizer: A file is not valid.
    """

    def __init__(self, folder: Path | None) -> None:
        """`folder` is None for a `tokenizer.model` that is read without its folder."""
        self._folder = folder

    @cached_property
    def tokenizer_config(self) -> Json:
        """Content of `tokenizer_config.json`."""
        return self.read("tokenizer_config.json")

    @cached_property
    def special_tokens_map(self) -> Json:
        """Content of `special_tokens_map.json`."""
        return self.read("special_tokens_map.json")

    @cached_property
    def config(self) -> Json:
        """Content of `config.json`."""
        return self.read("config.json")

    def read(self, name: str) -> Json:
        """Returns the content of one file, empty if there is none."""
        return read_json_if_present(self._folder / name, UnreadableTokenizer) if self._folder else {}

    def added_tokens(self) -> dict[int, AddedToken]:
        """Returns the added tokens by id, from all files that list them; `tokenizer_config.json` takes precedence.

        `tokenizer.json` counts next to a `tokenizer.model` of the same pieces.
        """
        entries = read_added_entries(self._folder) if self._folder else ()
        added = {entry["id"]: _added_token(entry["content"], entry) for entry in entries}
        for text, token_id in self.read("added_tokens.json").items():
            added[_token_id("added_tokens.json", token_id)] = AddedToken(text, False)
        listed = self._typed(dict, "tokenizer_config.json", "added_tokens_decoder") or {}
        for token_id, entry in listed.items():
            content = token_content(entry)
            if content is not None:
                added[_token_id("tokenizer_config.json", token_id)] = _added_token(content, entry)
        return added

    def named_tokens(self) -> list[str]:
        """Returns the contents of all tokens that have a role or are called special."""
        named = [self.role(role) for role in ROLES]
        for file, key in product(("special_tokens_map.json", "tokenizer_config.json"), EXTRA_TOKENS):
            listed = self._typed((list, dict), file, key) or []
            named += map(token_content, listed.values() if isinstance(listed, dict) else listed)
        return [content for content in named if content]

    def role(self, role: str) -> str | None:
        """Returns the content of `bos_token`, `eos_token` or `pad_token`."""
        return token_content(self.tokenizer_config.get(role)) or token_content(
            self.special_tokens_map.get(role)
        )

    def add_bos(self) -> bool | None:
        """Returns `add_bos_token`, None if it is not given."""
        found = self.tokenizer_config.get("add_bos_token")
        return found if isinstance(found, bool) else None

    def eos_ids(self) -> frozenset[int]:
        """Returns the ids that end an output; `generation_config.json` takes precedence over `config.json`."""
        found = self.read("generation_config.json").get("eos_token_id", self.config.get("eos_token_id"))
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(token_id) is int for token_id in ids):
            raise UnreadableTokenizer(
                f"The eos_token_id of generation_config.json or config.json is {str(found)[:200]}; ids are whole numbers.",
                "Fetch the file again.",
            )
        return frozenset(ids)

    def has_scaled_rope(self) -> bool:
        """Returns True if the rotary frequencies are scaled, as Llama models from 3.1 on have them."""
        rope = self.config.get("rope_scaling") or self.config.get("rope_parameters")
        return rope_type_of(rope) == "llama3" or bool(
            unwrap_params(self.read("params.json")).get("use_scaled_rope")
        )

    def chat_template(self) -> str | None:
        """Returns the Jinja text of the model's own template, the one named `default` if there are several."""
        jinja = self._folder / CHAT_TEMPLATE if self._folder else None
        if jinja is not None and jinja.is_file():
            return _text_of(jinja)
        for settings in (self.read("chat_template.json"), self.tokenizer_config):
            found = settings.get("chat_template")
            if isinstance(found, list):
                found = next(
                    (t["template"] for t in found if _is_template(t) and t["name"] == "default"), None
                )
            if isinstance(found, str):
                return found
        return None

    def _typed(self, kind: type | tuple[type, ...], file: str, key: str) -> Any:
        """Returns a value of a file, None if it is absent or null."""
        found = (self.tokenizer_config if file == "tokenizer_config.json" else self.special_tokens_map).get(
            key
        )
        if found is not None and not isinstance(found, kind):
            raise UnreadableTokenizer(
                f"{file} has {key} = {str(found)[:200]}; a JSON {'object' if kind is dict else 'list'} is needed.",
                "Fetch the file again.",
            )
        return found


def _added_token(content: str, entry: Any) -> AddedToken:
    flags = entry if isinstance(entry, Mapping) else {}
    return AddedToken(content, *(bool(flags.get(key)) for key in AddedToken._fields[1:]))


def _is_template(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("template"), str) and "name" in entry


def _text_of(path: Path) -> str:
    """Returns a file's text with its line ends as they are."""
    try:
        return read_regular(path, TEMPLATE_LIMIT_BYTES, UnreadableTokenizer).decode()
    except UnicodeDecodeError as error:
        raise UnreadableTokenizer(
            f"{path.name} is not valid UTF-8 ({error}).", "Fetch the file again."
        ) from error


def token_content(entry: Any) -> str | None:
    """Returns the content of a token written as a string or as an object with `content`."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _token_id(file: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableTokenizer(
            f"{file} has the token id {str(value)[:200]}.", "Fetch the file again."
        ) from error
