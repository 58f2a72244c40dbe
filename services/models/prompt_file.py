"""A file of prompts under `incoming/`."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.errors import InvalidText, UnreadableFile
from services.kinds.shared import PromptOptions
from services.templates import Message, PromptParts, check_text
from services.validation import reason_of

HINT = "Write one prompt per line; in a .jsonl file one JSON string or object per line; in a .json file a list of them."

JSON_LINES = (".jsonl", ".ndjson")
"""Suffixes of files with one JSON value per line; `.json` is one list, and every other file is plain text."""


class PromptEntry(BaseModel):
    """One prompt or one conversation; `system` and `input` take precedence over those of the request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    prompt_token_ids: tuple[int, ...] | None = Field(default=None, min_length=1)
    system: str | None = None
    input: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        given = (self.prompt, self.messages, self.prompt_token_ids)
        if sum(value is not None for value in given) != 1:
            raise ValueError("exactly one of prompt, messages and prompt_token_ids is needed")
        if self.prompt_token_ids is not None and (self.system, self.input) != (None, None):
            raise ValueError("prompt_token_ids are the whole prompt: system and input belong to texts")
        if self.messages is not None and self.input is not None:
            raise ValueError("an input belongs to a prompt, not to messages")
        return self

    @property
    def text(self) -> str:
        """The prompt, or the last message of the conversation; "" of token ids, which only the model's tokenizer reads."""
        return self.messages[-1].content if self.messages else self.prompt or ""

    def parts(self, options: PromptOptions) -> PromptParts:
        """Returns the parts of the prompt, with those of the request where the entry has none."""
        return PromptParts(
            prompt=self.prompt,
            messages=self.messages,
            system=options.system if self.system is None else self.system,
            input=options.input if self.input is None else self.input,
            template=options.template,
        )


@dataclass(frozen=True, slots=True)
class PromptFile:
    """Prompts of a file in order, and the SHA-256 of its bytes."""

    prompts: list[PromptEntry]
    digest: str


def read_prompt_file(path: Path, name: str) -> PromptFile:
    """Returns the prompts of a file; empty lines are skipped.

    Args:
        name: the file's name in messages.

    Raises:
        UnreadableFile: the file is not UTF-8 text, has no prompts, or has a line that is not a prompt.
        InvalidText: a prompt has a lone surrogate.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{name} is not a UTF-8 text file: {error}.", HINT) from error
    prompts = [_entry(value, f"{place} of {name}") for place, value in _values(text, path.suffix, name)]
    if not prompts:
        raise UnreadableFile(f"{name} has no prompts.", HINT)
    return PromptFile(prompts, hashlib.sha256(content).hexdigest())


def _values(text: str, suffix: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yields each prompt unparsed, with its place in the file."""
    if suffix == ".json":
        yield from _items(text, name)
        return
    # Not splitlines(): that also splits at characters that a prompt may contain (U+2028, form feed).
    for number, line in enumerate(text.split("\n"), start=1):
        place, line = f"line {number}", line.removesuffix("\r")  # noqa: PLW2901
        if line.strip():
            yield place, _parsed(line, f"{place} of {name}") if suffix in JSON_LINES else line


def _items(text: str, name: str) -> Iterator[tuple[str, Any]]:
    items = _parsed(text, name)
    if not isinstance(items, list):
        raise UnreadableFile(f"{name} is not a JSON list.", 'Write it like this: ["Hello"].')
    for number, item in enumerate(items, start=1):
        if item != "":
            yield f"prompt {number}", item


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UnreadableFile(f"{place} is not valid JSON: {error}.", HINT) from error


def _entry(value: Any, place: str) -> PromptEntry:
    try:
        for text in _texts(value):
            check_text(text)
        return PromptEntry.model_validate({"prompt": value} if isinstance(value, str) else value)
    except InvalidText as error:
        raise InvalidText(f"{place}: {error.message}", error.hint) from error
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        field = ".".join(map(str, found["loc"]))
        reason = reason_of(found["msg"])
        raise UnreadableFile(
            f"{place} is not a prompt: {field + ': ' if field else ''}{reason}.",
            "A prompt is a string, or an object with prompt or messages, and optionally system and input.",
        ) from error


def _texts(value: Any) -> Iterator[str]:
    """Yields every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
