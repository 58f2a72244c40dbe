"""Events of a kept response once more, for a client whose stream broke off."""

from collections.abc import Iterable, Iterator

from api.openai.responses_api.events import ResponseEvents
from api.openai.responses_api.response import ResponseObject
from services.errors import GraftwerkError
from services.jobs.status import Job
from services.kinds.generate import GenerateResult, TokenPiece


class ReplayedEvents(ResponseEvents):
    """The frames of a response after the event with the number `after`. The last event is always one of them.

    It is the only one of a response whose first events are no longer kept: the others would have other numbers than before.
    """

    def __init__(self, response: ResponseObject, after: int, *, is_whole: bool = True) -> None:
        super().__init__(response)
        self._after, self._is_whole = after, is_whole or after < 0

    def opening(self, prompt_tokens: int | None = None) -> Iterable[str]:
        """Returns the events that begin the response, if they are later."""
        return self._later(super().opening(prompt_tokens))

    def piece(self, piece: TokenPiece) -> Iterable[str]:
        """Returns the events of new parts of the output that are later."""
        return self._later(super().piece(piece))

    def closing(self, index: int, result: GenerateResult) -> Iterable[str]:
        """Returns the events that end the last item, if they are later."""
        return self._later(super().closing(index, result))

    def ending(self, job: Job, result: GenerateResult) -> Iterable[str]:
        """Returns the event with the whole response."""
        self._number_the_last()
        return super().ending(job, result)

    def failure(self, error: GraftwerkError) -> Iterable[str]:
        """Returns the event of a response that has failed."""
        self._number_the_last()
        return super().failure(error)

    def _number_the_last(self) -> None:
        if not self._is_whole:
            self._number = max(self._number, self._after + 1)

    def _later(self, frames: Iterable[str]) -> Iterator[str]:
        for frame in frames:
            if self._is_whole and self.last_number > self._after:
                yield frame
