"""Arguments of commands as fields of requests."""

import json
import sys
from pathlib import Path
from typing import TypeVar

from graftwerk.errors import UsageError
from graftwerk.options import given
from graftwerk.request_parts import JsonObject
from graftwerk.text_input import read_text

T = TypeVar("T")

TEXT_LIMIT = 1_000_000
"""Largest number of characters of a text in a request."""


def parse_adapters(texts: list[str]) -> list[str | JsonObject]:
    """Returns adapters in order, from `["a, b@0.5", "c"]`; `b:0.5` is understood too."""
    choices = [choice.strip() for text in texts for choice in text.split(",")]
    return [_parse_adapter(choice) for choice in choices if choice]


def form_fields(response_format: str | None, guided_regex: str | None) -> JsonObject:
    """Returns the fields of the form of outputs: `json`, or the JSON schema in a local file.

    Raises:
        UsageError: the file cannot be read, or is not a JSON object.
    """
    return given(response_format=_form(response_format), guided_regex=guided_regex)


def tool_fields(tools: str | None, tool_choice: str | None, chat_template_kwargs: str | None) -> JsonObject:
    """Returns the fields of tools: a local JSON file, a choice or a function's name, and an object as JSON.

    Raises:
        UsageError: the file or the object cannot be read.
    """
    choice: str | JsonObject | None = tool_choice
    if tool_choice is not None and tool_choice not in ("auto", "none", "required"):
        choice = {"type": "function", "function": {"name": tool_choice}}
    return given(
        tools=None if tools is None else _json(read_text(tools), tools, list, "a JSON list"),
        tool_choice=choice,
        chat_template_kwargs=None
        if chat_template_kwargs is None
        else _json(chat_template_kwargs, "--chat-template-kwargs", dict, "a JSON object"),
    )


def _json(text: str, name: str, kind: type[T], words: str) -> T:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}.", f"Give {words}.") from error
    if not isinstance(value, kind):
        raise UsageError(f"{name} is not {words}.", f"Give {words}.")
    return value


def _form(name: str | None) -> JsonObject | None:
    if name is None:
        return None
    if name == "json":
        return {"type": "json_object"}
    schema = _json(read_text(name), name, dict, "a JSON object")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}


def parse_variant(text: str) -> JsonObject:
    """Returns one variant of a comparison, from `label=base+adapter@0.5+adapter`."""
    label, _, names = text.rpartition("=")
    model, *adapters = names.split("+")
    return given(label=label or None, model=model, adapters=[_parse_adapter(adapter) for adapter in adapters])


def _parse_adapter(choice: str) -> str | JsonObject:
    name, at, scale = choice.replace(":", "@").partition("@")
    if not at:
        return name
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError as error:
        raise UsageError(f"The scale in {choice!r} is not a number.", f"Write it as {name}@0.5.") from error


def parse_token_ids(lists: list[str]) -> list[list[int]]:
    """Returns lists of token ids, from `["1,15043", "1 3186"]`."""
    try:
        return [[int(number) for number in text.replace(",", " ").split()] for text in lists]
    except ValueError as error:
        raise UsageError(
            f"The token ids hold something else: {error}.", "Write them as 1,15043,3186."
        ) from error


def parse_digests(texts: list[str]) -> dict[str, str]:
    """Returns digests by path, from `["consolidated.00.pth=abc…"]`."""
    digests = {}
    for text in texts:
        path, equals, digest = text.rpartition("=")
        if not equals or not path:
            raise UsageError(f"{text!r} is not a digest.", "Write it as path=hex.")
        digests[path] = digest
    return digests


def prompt_fields(prompts: list[str], prompts_file: str | None) -> JsonObject:
    """Returns the prompts of a request, from options or stdin.

    Raises:
        UsageError: there are no prompts, or they are given twice.
    """
    if prompts and prompts_file:
        raise UsageError("Both --prompt and --prompts-file were given.", "Give one of them.")
    if prompts_file and prompts_file.startswith("incoming/") and not Path(prompts_file).exists():
        return {"prompts_file": prompts_file}
    if prompts_file:
        prompts = _read_prompts(prompts_file)
    elif not prompts and sys.stdin.isatty():
        raise UsageError("There is no prompt.", "Give --prompt or --prompts-file, or pipe one in.")
    elif not prompts:
        prompts = [text] if (text := read_text("-").removesuffix("\n")) else []
    if not prompts:
        raise UsageError("The input has no prompt.", "Give at least one line of text.")
    return {"prompt": prompts[0]} if len(prompts) == 1 else {"prompts": prompts}


def _read_prompts(file: str) -> list[str]:
    if file.endswith((".json", ".jsonl", ".ndjson")):
        raise UsageError(
            f"{file} is JSON, which only the service reads.",
            "Put it into incoming/ on the volume and name it incoming/…, or give a text with one prompt per line.",
        )
    return read_lines(file)


def read_lines(file: str) -> list[str]:
    """Returns the lines of a local text, or of stdin for `-`, without blank ones."""
    return [line.removesuffix("\r") for line in read_text(file).split("\n") if line.strip()]


def text_fields(file: str) -> JsonObject:
    """Returns the text that a request scores: of a local file, or a file on the volume by its name.

    Raises:
        UsageError: the text cannot be read, or is too long for a request.
    """
    if file.startswith("incoming/") and not Path(file).exists():
        return {"text_file": file}
    text = read_text(file)
    if len(text) > TEXT_LIMIT:
        raise UsageError(
            f"{file} has {len(text)} characters; a request may contain {TEXT_LIMIT}.",
            "Put it under incoming/ on the model volume, and name it incoming/….",
        )
    return {"text": text}
