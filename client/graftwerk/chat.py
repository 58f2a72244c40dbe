"""`graftwerk chat`: a conversation, each answer a `generate` job over all that was said."""

from dataclasses import dataclass, field

from rich.console import Console

from graftwerk.display import complain, open_console, print_piece, print_text
from graftwerk.http import Graftwerk
from graftwerk.models import ClientError, Job, JsonObject
from graftwerk.submission import cancel_if_possible
from graftwerk.text_input import cleaned

HELP = "/reset forgets what was said, /system TEXT sets the system text, /quit (or Ctrl-D) ends; Ctrl-C stops an answer"


@dataclass
class Conversation:
    """What was said so far, and the request that each answer is asked for with."""

    request: JsonObject
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def asking(self, text: str) -> JsonObject:
        """The request for an answer to `text`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        question = {"role": "user", "content": text}
        messages = [*system, *self.turns, question]
        return self.request | {"kind": "generate", "messages": messages, "fit_context": True}

    def answered(self, text: str, answer: str) -> None:
        """Remembers a question and its answer."""
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


class GrowingText:
    """An answer as it is shown: piece by piece, and in the end whole."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown = ""

    def add(self, piece: JsonObject) -> None:
        """Show a piece. One that begins again (its worker died) begins a new line."""
        if piece["offset"] < len(self._shown):
            self.end()
        self._shown += piece["text"]
        print_piece(self._console, piece["text"])

    def complete(self, text: str) -> None:
        """Show what is missing of the whole text, and end the line."""
        if not text.startswith(self._shown):
            self.end()
        print_text(self._console, text[len(self._shown) :])
        self._shown = ""

    def end(self) -> None:
        """End the line, if there is one."""
        if self._shown:
            print_text(self._console, "")
        self._shown = ""


def converse(graftwerk: Graftwerk, conversation: Conversation) -> None:
    """Reads lines and answers them until the input ends."""
    console, notes = open_console(), open_console(stderr=True)
    notes.print(HELP, style="dim")
    while (text := read_line(console, notes)) is not None:
        command, _, rest = text.partition(" ")
        if command == "/quit":
            return
        if command == "/reset":
            conversation.turns.clear()
        elif command == "/system":
            conversation.system = rest.strip() or None
        elif text:
            answer_line(graftwerk, conversation, text)


def read_line(console: Console, notes: Console) -> str | None:
    """The next line as clean text, "" where there is nothing to answer, None at the end of the input."""
    try:
        typed = console.input("[bold green]you>[/] " if console.is_terminal else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        notes.print(HELP, style="dim")
        return ""
    except UnicodeDecodeError as error:
        notes.print(f"that line is not {error.encoding} text; please type it again", style="yellow")
        return ""
    text = cleaned(typed).strip()
    if text != typed.strip():
        notes.print(f"half a character was left out; read as: {text}", style="dim", markup=False)
    return text


def answer_line(graftwerk: Graftwerk, conversation: Conversation, text: str) -> None:
    """Asks for an answer and shows it as it grows; an error is told, and the conversation goes on as if not asked."""
    console, notes = open_console(), open_console(stderr=True)
    growing = GrowingText(console)
    try:
        job = graftwerk.submit(conversation.asking(text))
        job = await_answer(graftwerk, job, notes, growing)
    except ClientError as error:
        growing.end()
        complain(notes, error.detail, error.hint)
        return
    if job.status == "failed":
        growing.end()
        complain(
            notes, job.error.message if job.error else "the job failed", job.error.hint if job.error else ""
        )
    elif job.status == "succeeded" and job.result is not None:
        output = job.result["outputs"][0]
        growing.complete(output["text"])
        conversation.answered(text, output["text"])
        if dropped := output.get("dropped_turns"):
            notes.print(f"the oldest {dropped} turns no longer fit the model's context", style="dim")


def await_answer(graftwerk: Graftwerk, job: Job, notes: Console, growing: GrowingText) -> Job:
    """The ended job; Ctrl-C cancels it."""
    try:
        with notes.status("thinking") as status:

            def show(piece: JsonObject) -> None:
                status.stop()
                growing.add(piece)

            for latest in graftwerk.follow(job.id, on_text=show):
                job = latest
        return job
    except KeyboardInterrupt:
        growing.end()
        cancel_if_possible(graftwerk, job)
        notes.print("stopped", style="yellow")
        return job
