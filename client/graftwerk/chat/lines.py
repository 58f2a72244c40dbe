"""Input of a chat without a terminal: one text per line."""

from typing import Protocol

from rich.console import Console


class Reader(Protocol):
    """Source of the user's texts."""

    def read(self) -> str:
        """Returns the next text.

        Raises:
            EOFError: the input has ended.
            KeyboardInterrupt: the user has pressed Ctrl-C.
            UnicodeDecodeError: the input is not text.
        """


class LineReader:
    """Reads lines of stdin."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def read(self) -> str:
        """Returns the next line."""
        return self._console.input("[bold green]you>[/] " if self._console.is_terminal else "")
