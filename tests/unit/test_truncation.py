"""Dropped turns of a conversation: the oldest, each one whole, and no more than necessary."""

from collections.abc import Sequence

import pytest

from services.generate.prompts import BuiltPrompt
from services.generate.truncation import build_fitting
from services.isolation.process import Steps, complete
from services.templates import Message

pytestmark = pytest.mark.disable_socket

TURNS = ["sys:S", "user:aa", "assistant:bb", "user:cc", "user:c", "assistant:dd", "user:ee"]


def messages(turns: Sequence[str]) -> list[Message]:
    pairs = [turn.split(":") for turn in turns]
    return [
        Message.model_validate({"role": "system" if role == "sys" else role, "content": content})
        for role, content in pairs
    ]


def build(turns: Sequence[Message]) -> Steps[BuiltPrompt]:
    """A token a character: the contents can be read from the prompt."""
    yield
    return BuiltPrompt([ord(character) for turn in turns for character in turn.content], "t")


def fitted(turns: Sequence[str], limit: int) -> tuple[str, int]:
    prompt, dropped = complete(build_fitting(build, messages(turns), limit))
    return "".join(map(chr, prompt.token_ids)), dropped


@pytest.mark.parametrize(
    ("limit", "text", "dropped"),
    [
        (12, "Saabbcccddee", 0),
        (11, "Scccddee", 1),
        (8, "Scccddee", 1),
        (7, "See", 2),
        (3, "See", 2),
        (1, "See", 2),  # neither the system text nor the last turn is cut: what does not fit is refused later
    ],
)
def test_as_few_of_the_oldest_turns_as_it_takes_are_left_out(limit: int, text: str, dropped: int) -> None:
    assert fitted(TURNS, limit) == (text, dropped)


def test_a_conversation_without_a_system_text_keeps_its_last_turn() -> None:
    assert fitted(TURNS[1:], 6) == ("ee", 2)
    assert fitted(["user:aaaa"], 1) == ("aaaa", 0)


def test_many_turns_need_few_tries() -> None:
    tried: list[int] = []

    def counted(turns: Sequence[Message]) -> Steps[BuiltPrompt]:
        tried.append(len(turns))
        return build(turns)

    long = [turn for number in range(400) for turn in (f"user:{number:04}", f"assistant:{number:04}")]
    prompt, dropped = complete(build_fitting(counted, messages([*long, "user:last"]), 100))
    assert (dropped, len(prompt.token_ids)) == (388, 100)
    assert len(tried) < 15
