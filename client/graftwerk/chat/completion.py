"""Completion of commands, and of the names of models, adapters and files in their arguments."""

import time
from collections.abc import Callable, Iterable, Iterator

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from graftwerk.chat.commands import COMMANDS
from graftwerk.client import Client
from graftwerk.errors import ClientError
from graftwerk.model_results import ModelSummary

FRESH_SECONDS = 10
"""Age at which the list of models is requested again."""

NOT_CHATTED_WITH = ("adapter", "tokenizer")
"""Kinds of models that generate nothing by themselves."""


class Names:
    """Names of the models and adapters of a service; empty while it does not respond."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._models: list[ModelSummary] = []
        self._requested_at = float("-inf")

    def models(self) -> list[str]:
        """Returns the names of models that generate."""
        return [model.name for model in self._list() if model.kind not in NOT_CHATTED_WITH]

    def adapters(self) -> list[str]:
        """Returns the names of adapters."""
        return [model.name for model in self._list() if model.kind == "adapter"]

    def _list(self) -> list[ModelSummary]:
        if self._clock() - self._requested_at >= FRESH_SECONDS:
            self._requested_at = self._clock()
            try:
                self._models = self._client.models()
            except ClientError:
                self._models = []
        return self._models


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
        return argument, []


def _beginning(begun: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(begun)]
