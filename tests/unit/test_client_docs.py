"""docs/cli.md has every command, and nothing but commands and options that there are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graftwerk.commands import app
from typer.main import get_command

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")


def commands(group: Any, prefix: str = "graftwerk") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{prefix} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")


COMMANDS = dict(commands(get_command(app)))


def test_every_command_has_a_heading_and_an_example() -> None:
    headings = set(re.findall(r"^###? `(graftwerk [^`]+)`$", PAGE, re.MULTILINE))
    assert headings == set(COMMANDS)
    examples = re.findall(r"^    .*?\b(graftwerk .+)$", PAGE, re.MULTILINE)
    for name in COMMANDS:
        assert any(example == name or example.startswith(f"{name} ") for example in examples), name


def test_the_page_names_no_option_that_there_is_not_and_leaves_none_out() -> None:
    known = {
        option
        for command in (get_command(app), *COMMANDS.values())
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    mentioned = set(re.findall(r"--[a-z0-9][a-z0-9-]+|--n\b", PAGE))
    assert mentioned - known == {"--help"}
    assert known - mentioned == {"--examples"}
