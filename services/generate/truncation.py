"""Truncation of conversations that are too long for the model: the oldest turns are dropped as a whole."""

from collections.abc import Callable, Sequence

from services.generate.prompts import BuiltPrompt
from services.isolation.process import Steps
from services.templates import Message, Role


def build_fitting(
    build: Callable[[Sequence[Message]], Steps[BuiltPrompt]], messages: Sequence[Message], limit: int
) -> Steps[tuple[BuiltPrompt, int]]:
    """Returns a conversation's prompt without its oldest turns, and the number of dropped turns.

    As few turns as possible are dropped. A turn is a message of the user, results of tools and the assistant's messages.
    The system text and the last turn are always kept, and the template is applied to the rest.

    Args:
        build: returns the prompt of the messages; its errors are passed on.
        limit: maximum number of tokens of the prompt.
    """
    prompt = yield from build(messages)
    rests = _rests(messages)
    if len(prompt.token_ids) <= limit or not rests:
        return prompt, 0
    first, last = (
        0,
        len(rests) - 1,
    )  # bisection for the first rest that fits; the last one is taken in any case
    while first < last:
        middle = (first + last) // 2
        prompt = yield from build(rests[middle])
        if len(prompt.token_ids) <= limit:
            last = middle
        else:
            first = middle + 1
    return (yield from build(rests[first])), first + 1


def _rests(messages: Sequence[Message]) -> list[list[Message]]:
    """Returns the messages without the first turn, without the first two, and so on."""
    system = [message for message in messages[:1] if message.role == "system"]
    begins = [
        number
        for number in range(1, len(messages))
        if messages[number].role == "user" and _role_before(messages, number) == "assistant"
    ]
    return [[*system, *messages[begin:]] for begin in begins]


def _role_before(messages: Sequence[Message], number: int) -> Role | None:
    """Returns the role of the last message before this one that is not a system message."""
    roles = [message.role for message in messages[:number] if message.role != "system"]
    return roles[-1] if roles else None
