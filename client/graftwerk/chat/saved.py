"""Conversations in files: JSON, written and read as a whole or not at all."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from graftwerk.chat.conversation import Conversation
from graftwerk.errors import UsageError
from graftwerk.local_files import part_of


class SavedTurn(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["user", "assistant"]
    content: str


class SavedOptions(BaseModel):
    """Options of every request; those that this version does not know are kept."""

    model_config = ConfigDict(extra="allow")

    model: str
    adapters: list[str | dict[str, Any]] = []


class SavedConversation(BaseModel):
    """Contents of a file; `format` and `version` identify it."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["graftwerk-chat"]
    version: Literal[1]
    options: SavedOptions
    system: str | None
    turns: list[SavedTurn]


def save(conversation: Conversation, file: Path) -> None:
    """Writes a conversation to a file, which may replace an earlier one of a conversation.

    Raises:
        UsageError: the file is there and is not a conversation, or it cannot be written.
    """
    if file.exists() and _read(file) is None:
        raise UsageError(f"{file} exists and is not a saved conversation.", "Choose another name.")
    content = {
        "format": "graftwerk-chat", "version": 1, "options": conversation.options, "system": conversation.system,
        "turns": conversation.turns,
    }  # fmt: skip
    part = part_of(file)
    try:
        part.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.") from error


def load(file: Path) -> Conversation:
    """Returns the conversation of a file.

    Raises:
        UsageError: the file cannot be read or is not a conversation.
    """
    saved = _read(file)
    if saved is None:
        raise UsageError(f"{file} is not a saved conversation.", "`/save FILE` writes one.")
    turns = [turn.model_dump() for turn in saved.turns]
    return Conversation(saved.options.model_dump(exclude_unset=True), saved.system, turns)


def _read(file: Path) -> SavedConversation | None:
    try:
        return SavedConversation.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    except ValidationError:
        return None
