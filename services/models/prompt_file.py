"""A file of prompts under `incoming/`: what it asks, in order."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.errors import InvalidText, UnreadableFile
from services.templates import Message, check_text

HINT = "One prompt a line; in a .jsonl file one JSON text or object a line; in a .json file a list of them."

JSON_LINES = (".jsonl", ".ndjson")
"""Names of files with one JSON value a line; `.json` is one list, every other name is plain text."""


class Question(BaseModel):
    """One prompt or one conversation. `system` and `input` stand before those of the request."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)
    system: str | None = None
    input: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("exactly one of prompt and messages is needed")
        if self.messages is not None and self.input is not None:
            raise ValueError("an input belongs to a prompt, not to messages")
        return self

    @property
    def text(self) -> str:
        """The prompt, or the last turn of the conversation."""
        return self.messages[-1].content if self.messages else str(self.prompt)


@dataclass(frozen=True, slots=True)
class PromptFile:
    """The questions of a file in order, and the SHA-256 of its bytes."""

    questions: list[Question]
    digest: str


def read_prompt_file(path: Path, name: str) -> PromptFile:
    """The prompts of a file; empty lines are none.

    Args:
        name: what the file is called in messages.

    Raises:
        UnreadableFile: it is no UTF-8 text, holds no prompt, or a line of it is no prompt; the message says which.
        InvalidText: a prompt has half a character.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{name} is no UTF-8 text of prompts: {error}", HINT) from error
    questions = [_question(value, f"{place} of {name}") for place, value in _values(text, path.suffix, name)]
    if not questions:
        raise UnreadableFile(f"{name} holds no prompt", HINT)
    return PromptFile(questions, hashlib.sha256(content).hexdigest())


def _values(text: str, suffix: str, name: str) -> Iterator[tuple[str, Any]]:
    """Each prompt as it stands there, with its place in the file."""
    if suffix == ".json":
        yield from _items(text, name)
        return
    # Not splitlines(): that also splits at characters which a prompt may hold (U+2028, form feed).
    for number, line in enumerate(text.split("\n"), start=1):
        place, line = f"line {number}", line.removesuffix("\r")  # noqa: PLW2901
        if line.strip():
            yield place, _parsed(line, f"{place} of {name}") if suffix in JSON_LINES else line


def _items(text: str, name: str) -> Iterator[tuple[str, Any]]:
    items = _parsed(text, name)
    if not isinstance(items, list):
        raise UnreadableFile(f"{name} is no JSON list", 'Write it like this: ["Hello"].')
    for number, item in enumerate(items, start=1):
        if item != "":
            yield f"prompt {number}", item


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UnreadableFile(f"{place} is no JSON: {error}", HINT) from error


def _question(value: Any, place: str) -> Question:
    try:
        for text in _texts(value):
            check_text(text)
        return Question.model_validate({"prompt": value} if isinstance(value, str) else value)
    except InvalidText as error:
        raise InvalidText(f"{place}: {error.message}", error.hint) from error
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        field = ".".join(map(str, found["loc"]))
        reason = found["msg"].removeprefix("Value error, ")
        raise UnreadableFile(
            f"{place} is no prompt: {field + ': ' if field else ''}{reason}",
            "A prompt is a text, or an object with prompt or messages, and system and input where they are needed.",
        ) from error


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
