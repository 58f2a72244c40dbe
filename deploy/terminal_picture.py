"""Runs the main job on the miniature with the `graftwerk` command and draws what it prints: docs/img/terminal.svg.

Needs an empty service (`GRAFTWERK_URL`). Progress is left out: it is not part of the output.
"""

import os
import pty
import re
import shlex
import subprocess
import sys
from html import unescape
from io import StringIO
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "img" / "terminal.svg"
WIDTH = 100
COMMANDS = (
    "graftwerk import examples/miniature/llama",
    "graftwerk import examples/miniature/chinese-llama-lora.zip",
    "graftwerk import examples/miniature/chinese-alpaca-lora.zip",
    "graftwerk merge llama --adapters chinese-alpaca-lora,chinese-llama-lora --target chinese-alpaca",
    "graftwerk merge llama --adapters chinese-llama-lora,chinese-alpaca-lora --target chinese-alpaca",
    "graftwerk generate chinese-alpaca --template alpaca --prompt 中国的首都是哪里？ --temperature 0",
)
FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""Rich's fonts are on another host; the reader's own monospaced font does as well."""

TEXT = re.compile(r'textLength="([\d.]+)"([^>]*>)([^<]*)')


def _widened(found: re.Match[str]) -> str:
    """Returns a text with the width of its cells: rich counts characters, and Chinese ones take two cells."""
    text = unescape(found[3])
    width = float(found[1]) * cell_len(text) / max(len(text), 1)
    return f'textLength="{width:.1f}"{found[2]}{found[3]}'


def output_of(command: str) -> str:
    """Returns what a command prints on a terminal, and its refusal; the lines of its progress are left out."""
    terminal, end = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    words = [sys.executable, "-m", *shlex.split(command)]
    with subprocess.Popen(
        words,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=end,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(end)
        printed = b"".join(iter(lambda: _read(terminal), b"")).decode()
        errors = process.stderr.read() if process.stderr else ""
    os.close(terminal)
    refusal = errors[errors.index("error: ") :] if "error: " in errors else ""
    return (printed + refusal).replace("\r\n", "\n").rstrip()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end of a terminal is closed
        return b""


def draw(picture: Path) -> None:
    """Runs the commands and writes the picture."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    for command in COMMANDS:
        console.print(Text("$ ", "bold green") + Text(command, "bold"))
        console.print(Text.from_ansi(output_of(command)))
        console.print()
    svg = console.export_svg(title="graftwerk", unique_id="graftwerk")
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(TEXT.sub(_widened, FONT_FACE.sub("", svg)), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if sys.argv[1:] else PICTURE)
