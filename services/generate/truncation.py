"""Truncation of conversations that are too long for the model: the oldest turns are dropped as a whole."""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from services.generate.prompts import BuiltPrompt
from services.templates import Message


def build_fitting(
    build: Callable[[Sequence[Message]], BuiltPrompt], messages: Sequence[Message], limit: int
) -> tuple[BuiltPrompt, int]:
    """Returns a conversation's prompt without its oldest turns, and the number of dropped turns.

    As few turns as possible are dropped. A turn is a message of the user, results of tools and the assistant's messages.
    The system text and the last turn are always kept, and the template is applied to the rest.

    Args:
        build: returns the prompt of the messages; its errors are passed on.
        limit: maximum number of tokens of the prompt.
    """
    prompt = build(messages)
    rests = _rests(messages)
    if len(prompt.token_ids) <= limit or not rests:
        return prompt, 0
    dropped = bisect_left(rests, True, key=lambda rest: len(build(rest).token_ids) <= limit)
    dropped = min(dropped, len(rests) - 1)
    return build(rests[dropped]), dropped + 1


def _rests(messages: Sequence[Message]) -> list[list[Message]]:
    """Returns the messages without the first turn, without the first two, and so on."""
    system = [message for message in messages[:1] if message.role == "system"]
    begins = [
        number
        for number in range(1, len(messages))
        if messages[number].role == "user" and messages[number - 1].role == "assistant"
    ]
    return [[*system, *messages[begin:]] for begin in begins]
