"""Texts that were typed in earlier chats, in a file that only the user can read."""

import os
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from rich.console import Console

from graftwerk.text_input import without_surrogates


class PrivateHistory(FileHistory):
    """History in a file of mode 0600, in a folder of mode 0700.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        file.chmod(0o600)
        super().__init__(str(file))

    def append_string(self, string: str) -> None:
        """Adds a text; half characters are left out, as in what is sent."""
        super().append_string(without_surrogates(string))


def open_history(notes: Console) -> History:
    """Returns the history of earlier chats, or an empty one, with a note, where the file cannot be written."""
    try:
        return PrivateHistory(state_folder() / "chat_history")
    except OSError as error:
        text = f"Texts of this chat are not kept for the next one: {error.strerror} ({error.filename})."
        notes.print(text, style="yellow", markup=False, soft_wrap=True)
        return InMemoryHistory()


def state_folder() -> Path:
    """Returns the user's folder for state (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "graftwerk"
