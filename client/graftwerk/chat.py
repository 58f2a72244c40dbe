"""`graftwerk chat`: a conversation in which each turn is a `generate` job with all previous turns."""

from dataclasses import dataclass, field

from rich.console import Console

from graftwerk.client import Client
from graftwerk.display import complain, open_console, print_piece, print_text
from graftwerk.errors import ClientError
from graftwerk.inference_results import GenerateResult, TokenPiece
from graftwerk.job_handle import JobHandle
from graftwerk.models import Job, JsonObject
from graftwerk.submission import cancel_if_running
from graftwerk.text_input import without_surrogates

HELP = (
    "/reset clears the conversation, /system TEXT sets the system text, /quit (or Ctrl-D) ends; "
    "Ctrl-C stops the output"
)


@dataclass
class Conversation:
    """Turns so far, and the options of every request."""

    options: JsonObject
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def request(self, text: str) -> JsonObject:
        """Returns the request for the next turn, after the user's `text`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, *self.turns, {"role": "user", "content": text}]
        return self.options | {"kind": "generate", "messages": messages, "fit_context": True}

    def add(self, text: str, reply: str) -> None:
        """Adds a turn of the user and one of the model."""
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]


class StreamedText:
    """Text on the console, printed piece by piece and completed at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ""

    def add(self, piece: TokenPiece) -> None:
        """Prints a piece; one that starts again, after its worker was killed, starts on a new line."""
        if piece.offset < len(self._shown):
            self.end()
        self._shown += piece.text
        print_piece(self._console, piece.text)

    def complete(self, text: str) -> None:
        """Prints the part of the whole text that is missing, and ends the line."""
        if not text.startswith(self._shown):
            self.end()
        print_text(self._console, text[len(self._shown) :])
        self._shown = ""

    def end(self) -> None:
        """Ends the line if something is on it."""
        if self._shown:
            print_text(self._console, "")
        self._shown = ""


def converse(client: Client, conversation: Conversation) -> None:
    """Reads lines and prints the model's replies until the input ends."""
    console, notes = open_console(), open_console(stderr=True)
    notes.print(HELP, style="dim", soft_wrap=True)
    while (text := read_line(console, notes)) is not None:
        command, _, rest = text.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            conversation.turns.clear()
        elif command == "/system":
            conversation.system = rest.strip() or None
        elif text:
            reply_to(client, conversation, text)


def read_line(console: Console, notes: Console) -> str | None:
    """Returns the next line as valid text, "" if there is nothing to reply to, None at the end of the input."""
    try:
        typed = console.input("[bold green]you>[/] " if console.is_terminal else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        notes.print(HELP, style="dim")
        return ""
    except UnicodeDecodeError as error:
        notes.print(f"The line is not {error.encoding} text. Type it again.", style="yellow")
        return ""
    text = without_surrogates(typed).strip()
    if text != typed.strip():
        notes.print(f"Half a character was left out; read as: {text}", style="dim", markup=False)
    return text


def reply_to(client: Client, conversation: Conversation, text: str) -> None:
    """Prints the reply as it is generated; after an error the conversation continues without this turn."""
    streamed, notes = StreamedText(open_console()), open_console(stderr=True)
    try:
        job = wait_for_reply(client.submit(conversation.request(text)), notes, streamed)
    except ClientError as error:
        streamed.end()
        complain(notes, error.detail, error.hint)
        return
    if job.status == "failed":
        streamed.end()
        complain(
            notes, job.error.message if job.error else "The job failed.", job.error.hint if job.error else ""
        )
    elif isinstance(job.result, GenerateResult):
        output = job.result.outputs[0]
        reply = output.text or ""
        streamed.complete(reply)
        conversation.add(text, reply)
        if output.dropped_turns:
            notes.print(
                f"The oldest {output.dropped_turns} turns no longer fit the model's context.", style="dim"
            )


def wait_for_reply(handle: JobHandle, notes: Console, streamed: StreamedText) -> Job:
    """Returns the ended job; Ctrl-C cancels it."""
    try:
        with notes.status("generating") as status:
            for event in handle.events():
                if isinstance(event, TokenPiece):
                    status.stop()
                    streamed.add(event)
    except KeyboardInterrupt:
        streamed.end()
        cancel_if_running(handle)
        notes.print("stopped", style="yellow")
    return handle.job
