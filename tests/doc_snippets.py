"""Code blocks and shell commands of the documentation."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "client" / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
)
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")
PIPE = {"|", "&&", ";", "||"}
REDIRECTS = {">", ">>", "<"}
ASSIGNMENT = re.compile(r"\w+=.*", re.DOTALL)


class Block(NamedTuple):
    """A code block: the page, the number of its first line, the language, the other words of its fence, its text."""

    page: str
    line: int
    language: str
    options: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, as `docs/cli.md:12`."""
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """Returns the fenced and the indented code blocks of a page, in order."""
    found = [*_fenced(page), *_indented(page)]
    return sorted(found, key=lambda block: block.line)


def all_blocks() -> list[Block]:
    """Returns the code blocks of all pages."""
    return [block for page in PAGES for block in blocks(page)]


def _fenced(page: Path) -> Iterator[Block]:
    opened: tuple[int, re.Match[str]] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = FENCE.match(line)
        if opened is None:
            opened, lines = ((number + 1, fence) if fence else None), []
        elif fence and not fence["info"]:
            language, _, options = opened[1]["info"].partition(" ")
            yield Block(_name(page), opened[0], language, options, "\n".join(lines) + "\n")
            opened = None
        else:
            lines.append(line.removeprefix(opened[1]["indent"]))


def _indented(page: Path) -> Iterator[Block]:
    """Indented blocks that are not in a list; those of the pages are shell commands, or Python."""
    text = re.sub(
        r"^( *)```.*?^\1```$",
        lambda found: "\n" * found[0].count("\n"),
        page.read_text("utf-8"),
        flags=re.S | re.M,
    )
    for found in re.finditer(r"(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+", text):
        before = text[: found.start()].rstrip("\n").rsplit("\n", 1)[-1]
        if not re.match(r"\s*([-*]|\d+\.) |\s{2,}\S", before):
            body = re.sub(r"^ {4}", "", found[0], flags=re.M)
            language = "python" if re.match(r"(from|import|with) ", body) else "sh"
            yield Block(_name(page), text.count("\n", 0, found.start()) + 1, language, "", body)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def shell_commands(block: Block) -> Iterator[list[str]]:
    """Yields the words of each simple command of a shell block, without redirections and assignments before it."""
    text = (
        re.sub(r"^\$ (.*)(\n(?!\$ ).*)*", r"\1", block.text, flags=re.M)
        if "$ " in block.text[:2]
        else block.text
    )
    text = re.sub(r"\\\n", " ", text)
    for words in _commands_of(text):
        first = next((index for index, word in enumerate(words) if not ASSIGNMENT.fullmatch(word)), None)
        if first is not None:
            yield words[first:]


def _commands_of(text: str) -> Iterator[list[str]]:
    words: list[str] = []
    skip = False
    for line in _logical_lines(text):
        for word in shlex.split(_keep_operators(line), comments=True):
            if skip:
                skip = False
            elif word in REDIRECTS or re.fullmatch(r"\d>", word):
                skip = True
            elif word in PIPE:
                yield words
                words = []
            else:
                words.append(word)
        yield words
        words = []


def _logical_lines(text: str) -> Iterator[str]:
    """Joins lines while a quotation is open."""
    pending = ""
    for line in text.splitlines():
        pending += f"{line}\n"
        try:
            shlex.split(pending, comments=True)
        except ValueError:
            continue
        yield pending
        pending = ""
    assert not pending, pending


def _keep_operators(line: str) -> str:
    """Puts spaces around operators outside of quotations and of substitutions."""
    parts = re.split(r"('[^']*'|\"(?:[^\"\\]|\\.)*\"|\$\((?:[^()]|\([^()]*\))*\))", line, flags=re.S)
    parts[::2] = [re.sub(r"\s*(&&|\|\||[|;]|\d?>>?)\s*", r" \1 ", part) for part in parts[::2]]
    parts[1::2] = [shlex.quote(part) if part.startswith("$(") else part for part in parts[1::2]]
    return "".join(parts)
