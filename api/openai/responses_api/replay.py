"""Events of a kept response once more, for a client whose stream broke off."""

from collections.abc import Iterable, Iterator

from api.openai.responses_api.events import ResponseEvents
from api.openai.responses_api.response import ResponseObject
from services.kinds.generate import GenerateResult, TokenPiece


class ReplayedEvents(ResponseEvents):
    """The frames of a response after the event with the number `after`. The last event is always one of them."""

    def __init__(self, response: ResponseObject, after: int) -> None:
        super().__init__(response)
        self._after = after

    def opening(self, prompt_tokens: int | None = None) -> Iterable[str]:
        """Returns the events that begin the response, if they are later."""
        return self._later(super().opening(prompt_tokens))

    def piece(self, piece: TokenPiece) -> Iterable[str]:
        """Returns the events of new parts of the output that are later."""
        return self._later(super().piece(piece))

    def closing(self, index: int, result: GenerateResult) -> Iterable[str]:
        """Returns the events that end the last item, if they are later."""
        return self._later(super().closing(index, result))

    def _later(self, frames: Iterable[str]) -> Iterator[str]:
        for frame in frames:
            if self.last_number > self._after:
                yield frame
