"""The loop of a chat: read a text, run a command or print the reply."""

import sys

from graftwerk.chat.commands import run_command
from graftwerk.chat.conversation import Conversation
from graftwerk.chat.lines import LineReader, Reader
from graftwerk.chat.replies import reply_to
from graftwerk.chat.state import Chat
from graftwerk.client import Client
from graftwerk.display import complain, open_console
from graftwerk.errors import ClientError
from graftwerk.text_input import without_surrogates

WELCOME = "Chat with {}: /help lists the commands, Alt-Enter begins a new line, Ctrl-D ends."


def converse(client: Client, conversation: Conversation) -> None:
    """Reads texts and prints the model's replies until the input ends."""
    chat = Chat(
        client=client, conversation=conversation, console=open_console(), notes=open_console(stderr=True)
    )
    chat.note(WELCOME.format(conversation.label))
    reader = open_reader(chat)
    while not chat.is_over and (text := next_text(reader, chat)) is not None:
        try:
            take(chat, text)
        except KeyboardInterrupt:
            chat.note("stopped")


def take(chat: Chat, text: str) -> None:
    """Runs a command, or prints the model's reply to a text; errors are printed and change nothing."""
    try:
        if text.startswith("/") and not text.startswith("//"):
            run_command(chat, text)
        elif text:
            text = text.removeprefix("/") if text.startswith("//") else text
            reply_to(chat.client, chat.conversation, text, chat.console, chat.notes)
    except ClientError as error:
        complain(chat.notes, error.detail, error.hint)


def open_reader(chat: Chat) -> Reader:
    """Returns an editor on a terminal, else a reader of lines."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return LineReader(chat.console)
    # prompt_toolkit is imported where there is a terminal only: it takes a third of a second
    from graftwerk.chat.editor import open_editor  # noqa: PLC0415

    return open_editor(chat.client, chat.notes)


def next_text(reader: Reader, chat: Chat) -> str | None:
    """Returns the next text, valid and stripped, "" if there is nothing to reply to, None at the end of the input."""
    try:
        typed = reader.read()
    except EOFError:
        return None
    except KeyboardInterrupt:
        chat.note("Nothing is running. Ctrl-D or /quit ends the chat.")
        return ""
    except UnicodeDecodeError as error:
        chat.notes.print(f"The line is not {error.encoding} text. Type it again.", style="yellow")
        return ""
    text = without_surrogates(typed).strip()
    if text != typed.strip():
        chat.note(f"Half a character was left out; read as: {text}")
    return text
