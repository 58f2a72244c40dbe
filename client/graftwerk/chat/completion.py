"""Completion of commands, and of the names of models, adapters and files in their arguments."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from graftwerk.chat.commands import COMMANDS
from graftwerk.client import Client
from graftwerk.errors import ClientError

Item = TypeVar("Item")

FRESH_SECONDS = 10
"""Age at which a list is requested again."""

NOT_CHATTED_WITH = ("adapter", "tokenizer")
"""Kinds of models that generate nothing by themselves."""


class Recent(Generic[Item]):
    """A list of the service that is requested again when it is old; empty while the service does not respond."""

    def __init__(self, request: Callable[[], list[Item]], clock: Callable[[], float]) -> None:
        self._request, self._clock = request, clock
        self._items: list[Item] = []
        self._requested_at = float("-inf")

    def __call__(self) -> list[Item]:
        """Returns the list."""
        if self._clock() - self._requested_at >= FRESH_SECONDS:
            self._requested_at = self._clock()
            try:
                self._items = self._request()
            except ClientError:
                self._items = []
        return self._items


class Names:
    """Names of the models, adapters and templates of a service."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._models = Recent(client.models, clock)
        self._templates = Recent(client.templates, clock)

    def models(self) -> list[str]:
        """Returns the names of models that generate."""
        return [model.name for model in self._models() if model.kind not in NOT_CHATTED_WITH]

    def adapters(self) -> list[str]:
        """Returns the names of adapters."""
        return [model.name for model in self._models() if model.kind == "adapter"]

    def templates(self) -> list[str]:
        """Returns the names of prompt templates."""
        return [template.name for template in self._templates()]


class ChatCompleter(Completer):
    """Completes lines that begin with `/`; other texts are left alone."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yields the completions at the cursor."""
        line = document.text_before_cursor
        if not line.startswith("/") or "\n" in line:
            return
        command, space, argument = line.partition(" ")
        if not space:
            for name in _beginning(command, COMMANDS):
                yield Completion(name, -len(command), display_meta=COMMANDS[name].effect)
        elif command in ("/save", "/load"):
            place = Document(argument, len(argument))
            yield from self._files.get_completions(place, complete_event)
        else:
            begun, found = self._argument(command, argument)
            yield from (Completion(name, -len(begun)) for name in _beginning(begun, found))

    def _argument(self, command: str, argument: str) -> tuple[str, list[str]]:
        """Returns the begun name at the end of an argument, and the names that can stand there."""
        model, plus, adapters = argument.partition("+")
        match command:
            case "/model" | "/compare" if not plus:
                return model, self._names.models()
            case "/model" | "/compare":
                return adapters.rpartition("+")[2], self._names.adapters()
            case "/adapter":
                return argument.rpartition(",")[2].lstrip(), self._names.adapters()
            case "/scale":
                return argument, self._names.adapters()
            case "/template":
                return argument, self._names.templates()
        return argument, []


def _beginning(begun: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(begun)]
