"""Pieces of text: not too many, and together the whole."""

from pathlib import Path
from typing import Any

import pytest

from services.models.store import ModelStore
from services.settings import Settings
from tests.job_context import FakeExecution
from worker.inference.token_stream import TokenStream
from worker.lifecycle import JobContext


class Watcher:
    """What was told, and a clock that stands still unless it is moved."""

    def __init__(self) -> None:
        self.execution = FakeExecution()
        self.seconds = 100.0

    def teller(self, *, with_token_ids: bool = False) -> TokenStream:
        context = JobContext(ModelStore(Path()), Settings(), self.execution)
        return TokenStream(context, with_token_ids=with_token_ids, clock=lambda: self.seconds)

    @property
    def told(self) -> list[dict[str, Any]]:
        return [piece.model_dump(exclude_unset=True) for piece in self.execution.pieces]


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


def test_the_first_token_is_told_at_once_and_the_next_ones_together(watcher: Watcher) -> None:
    teller = watcher.teller()
    for word in ("one", " two", " three"):
        teller.add(0, word, 7, None)
        teller.tell()
    assert [piece["text"] for piece in watcher.told] == ["one"]
    watcher.seconds += 0.031
    teller.tell()
    assert watcher.told[1] == {"index": 0, "offset": 3, "text": " two three", "finish_reason": None}


def test_the_end_is_told_even_when_no_text_is_left(watcher: Watcher) -> None:
    teller = watcher.teller()
    teller.add(0, "all", 7, None)
    teller.tell()
    teller.end(0, "stop")
    teller.tell()
    assert len(watcher.told) == 1
    teller.tell_rest()
    assert watcher.told[1] == {"index": 0, "offset": 3, "text": "", "finish_reason": "stop"}
    teller.tell_rest()
    assert len(watcher.told) == 2


def test_a_token_without_certain_text_is_told_only_to_those_who_want_ids(watcher: Watcher) -> None:
    plain, exact = watcher.teller(), watcher.teller(with_token_ids=True)
    for teller in (plain, exact):
        teller.add(1, "", 7, None)
        teller.add(1, "é", 8, None)
        teller.tell()
    assert "token_ids" not in watcher.told[0]
    assert watcher.told[1]["token_ids"] == [7, 8]


def test_answers_are_told_apart(watcher: Watcher) -> None:
    teller = watcher.teller()
    teller.add(0, "a", 7, {"token": "a", "logprob": -0.5})
    teller.add(1, "b", 8, {"token": "b", "logprob": -0.5})
    teller.tell()
    assert [(piece["index"], piece["text"], piece["logprobs"]) for piece in watcher.told] == [
        (0, "a", [{"token": "a", "logprob": -0.5}]),
        (1, "b", [{"token": "b", "logprob": -0.5}]),
    ]
