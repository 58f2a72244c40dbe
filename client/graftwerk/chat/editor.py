"""Input of a chat on a terminal: an editor of several lines with history and completion."""

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console

from graftwerk.chat.completion import ChatCompleter, Names
from graftwerk.chat.history import open_history
from graftwerk.client import Client

PROMPT = FormattedText([("bold ansigreen", "you> ")])
CONTINUATION = FormattedText([("ansigreen", "   > ")])


class Editor:
    """Reads texts from the terminal; Enter ends a text, Alt-Enter a line, and pasted lines stay together."""

    def __init__(self, names: Names, history: History) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=history,
            completer=ChatCompleter(names),
            complete_in_thread=True,
            complete_while_typing=Condition(_is_command),
            multiline=True,
            key_bindings=_bindings(),
            prompt_continuation=CONTINUATION,
        )

    def read(self) -> str:
        """Returns the next text."""
        return self._session.prompt(PROMPT)


def open_editor(client: Client, notes: Console) -> Editor:
    """Returns an editor with the user's history and the names of the service."""
    return Editor(Names(client), open_history(notes))


def _is_command() -> bool:
    return get_app().current_buffer.text.startswith("/")


def _bindings() -> KeyBindings:
    bindings, in_text = KeyBindings(), has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=in_text)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=in_text)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
