"""Replies of the model: their text appears as it is generated."""

from collections.abc import Callable

from rich.console import Console

from graftwerk.chat.conversation import Conversation
from graftwerk.client import Client
from graftwerk.display import complain, print_piece, print_text
from graftwerk.errors import ClientError
from graftwerk.inference_results import GenerateResult, Output, TokenPiece
from graftwerk.job_handle import JobHandle
from graftwerk.models import Job, JsonObject
from graftwerk.submission import cancel_if_running


class StreamedText:
    """Text on the console, printed piece by piece and completed at the end; thinking comes before it, dimmed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.shown = ""
        self._is_thinking = False

    def add(self, piece: TokenPiece) -> None:
        """Prints a piece; one that starts again, after its worker was killed, starts on a new line."""
        if piece.offset < len(self.shown):
            self.end()
        if piece.reasoning:
            self._is_thinking = True
            print_piece(self._console, piece.reasoning, style="dim")
        if piece.text and self._is_thinking:
            self._end_thinking()
        self.shown += piece.text
        print_piece(self._console, piece.text)

    def complete(self, text: str) -> None:
        """Prints the part of the whole text that is missing, and ends the line."""
        if not text.startswith(self.shown):
            self.end()
        self._end_thinking()
        print_text(self._console, text[len(self.shown) :])
        self.shown = ""

    def end(self) -> None:
        """Ends the line if something is on it."""
        self._end_thinking()
        if self.shown:
            print_text(self._console, "")
        self.shown = ""

    def _end_thinking(self) -> None:
        if self._is_thinking:
            print_text(self._console, "\n")
        self._is_thinking = False


def reply_to(client: Client, conversation: Conversation, text: str, console: Console, notes: Console) -> None:
    """Prints the reply and adds both turns; after an error the conversation continues without them.

    A reply that Ctrl-C stops is kept as far as it came.
    """
    streamed = StreamedText(console)
    job = ended_job(client, conversation.request(text), notes, on_piece=streamed.add)
    if job is None or job.status == "failed":
        streamed.end()
    elif job.status == "canceled":
        if streamed.shown:
            conversation.add(text, streamed.shown)
        streamed.end()
    elif isinstance(job.result, GenerateResult):
        output = job.result.outputs[0]
        streamed.complete(output.text or "")
        conversation.add(text, output.text or "")
        _note_dropped(output, notes)


def ended_job(
    client: Client,
    request: JsonObject,
    notes: Console,
    on_piece: Callable[[TokenPiece], None] = lambda _: None,
) -> Job | None:
    """Returns the ended job of a request, None if there is none; errors are printed. Ctrl-C cancels the job."""
    try:
        handle = client.submit(request)
        for warning in handle.job.warnings:
            notes.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
        job = _follow(handle, notes, on_piece)
    except ClientError as error:
        complain(notes, error.detail, error.hint)
        return None
    if job.status == "failed":
        failure = job.error
        complain(notes, failure.message if failure else "The job failed.", failure.hint if failure else "")
    return job


def _follow(handle: JobHandle, notes: Console, on_piece: Callable[[TokenPiece], None]) -> Job:
    try:
        with notes.status("generating") as status:
            for event in handle.events():
                if isinstance(event, TokenPiece):
                    status.stop()
                    on_piece(event)
    except KeyboardInterrupt:
        cancel_if_running(handle)
        notes.print("stopped", style="yellow")
        return handle.job.model_copy(update={"status": "canceled"})
    return handle.job


def _note_dropped(output: Output, notes: Console) -> None:
    if output.dropped_turns:
        notes.print(
            f"The oldest {output.dropped_turns} turns no longer fit the model's context.", style="dim"
        )
