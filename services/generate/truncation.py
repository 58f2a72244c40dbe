"""A conversation that is too long for the model: its oldest turns are left out, whole."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from services.generate.prompts import BuiltPrompt
from services.templates import Message


def build_fitting(
    build: Callable[[Sequence[Message]], BuiltPrompt], messages: Sequence[Message], limit: int
) -> tuple[BuiltPrompt, int]:
    """A conversation's prompt without as few of its oldest turns as makes it fit; and how many those are.

    A turn is what the user said and the answer to it. The system text and the last turn stay, whatever their length, and the
    template is written around what is left.

    Args:
        build: gives the prompt of these messages.
        limit: tokens that the prompt may have.

    Raises whatever `build` raises.
    """
    prompt = build(messages)
    rests = _rests(messages)
    if len(prompt.token_ids) <= limit or not rests:
        return prompt, 0
    dropped = bisect_left(rests, True, key=lambda rest: len(build(rest).token_ids) <= limit)
    dropped = min(dropped, len(rests) - 1)
    return build(rests[dropped]), dropped + 1


def _rests(messages: Sequence[Message]) -> list[list[Message]]:
    """What is left without the first turn, the first two, and so on."""
    system = [message for message in messages[:1] if message.role == "system"]
    begins = [
        number
        for number in range(1, len(messages))
        if messages[number].role == "user" and messages[number - 1].role == "assistant"
    ]
    return [[*system, *messages[begin:]] for begin in begins]
