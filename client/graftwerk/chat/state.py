"""State of a running chat, which its commands change."""

from dataclasses import dataclass

from rich.console import Console

from graftwerk.chat.conversation import Conversation
from graftwerk.client import Client


@dataclass(kw_only=True)
class Chat:
    """A running chat: its connection, its conversation, and the consoles of answers and notes."""

    client: Client
    conversation: Conversation
    console: Console
    notes: Console
    is_over: bool = False

    def change(self, conversation: Conversation) -> None:
        """Continues with another conversation or other options.

        Raises:
            ApiError: the service would refuse its next request; this one stays.
        """
        self.client.plan(conversation.request(conversation.question or "Hello"))
        self.conversation = conversation

    def note(self, text: str) -> None:
        """Prints a note, apart from the model's text."""
        self.notes.print(text, style="dim", markup=False, soft_wrap=True)
