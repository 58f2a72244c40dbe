"""The token stream: few batches, and together the whole text."""

import pytest

from services.kinds.generate import Logprob
from services.kinds.tools import ToolCallPiece
from tests.job_context import FakeExecution
from worker.inference.token_stream import TokenStream


class Reader:
    """Published pieces, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.execution = FakeExecution()
        self.seconds = 100.0

    def stream(self, *, with_token_ids: bool = False) -> TokenStream:
        publish = self.execution.publish_tokens
        return TokenStream(publish, with_token_ids=with_token_ids, clock=lambda: self.seconds)

    @property
    def pieces(self) -> list[dict[str, object]]:
        return [piece.model_dump(exclude_unset=True) for piece in self.execution.pieces]


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_the_first_token_is_published_at_once_and_the_next_ones_together(reader: Reader) -> None:
    stream = reader.stream()
    for word in ("one", " two", " three"):
        stream.add(0, word, token_id=7)
        stream.flush_if_due()
    assert [piece["text"] for piece in reader.pieces] == ["one"]
    reader.seconds += 0.031
    stream.flush_if_due()
    assert reader.pieces[1] == {"index": 0, "offset": 3, "text": " two three", "finish_reason": None}


def test_the_first_piece_has_the_tokens_of_the_prompt(reader: Reader) -> None:
    stream = reader.stream()
    stream.begin(0, 12)
    stream.add(0, "one", token_id=7)
    stream.flush()
    stream.add(0, "two", token_id=7)
    stream.flush()
    assert [piece.get("prompt_tokens") for piece in reader.pieces] == [12, None]


def test_new_arguments_of_one_call_are_one_piece(reader: Reader) -> None:
    stream = reader.stream()
    for index, offset, text in ((0, 0, "{"), (0, 1, "}"), (1, 0, "{"), (1, 1, '"a"')):
        call = ToolCallPiece(index=index, id=f"c{index}", name="f", arguments=text, offset=offset)
        stream.add_parts(0, reasoning="", calls=[call])
    stream.flush()
    (piece,) = reader.execution.pieces
    assert [(call.index, call.offset, call.arguments) for call in piece.tool_calls] == [
        (0, 0, "{}"),
        (1, 0, '{"a"'),
    ]


def test_the_end_is_published_even_if_no_text_is_left(reader: Reader) -> None:
    stream = reader.stream()
    stream.add(0, "all", token_id=7)
    stream.flush_if_due()
    stream.finish(0, "stop")
    stream.flush_if_due()
    assert len(reader.pieces) == 1
    stream.flush()
    assert reader.pieces[1] == {"index": 0, "offset": 3, "text": "", "finish_reason": "stop"}
    stream.flush()
    assert len(reader.pieces) == 2


def test_a_token_without_text_is_published_only_with_its_id(reader: Reader) -> None:
    plain, exact = reader.stream(), reader.stream(with_token_ids=True)
    for stream in (plain, exact):
        stream.add(1, "", token_id=7)
        stream.add(1, "é", token_id=8)
        stream.flush_if_due()
    assert "token_ids" not in reader.pieces[0]
    assert reader.pieces[1]["token_ids"] == [7, 8]


def test_outputs_have_pieces_of_their_own(reader: Reader) -> None:
    stream = reader.stream()
    stream.add(0, "a", token_id=7, logprobs=[Logprob(token="a", logprob=-0.5)])
    stream.add(1, "b", token_id=8, logprobs=[Logprob(token="b", logprob=-0.5)])
    stream.flush_if_due()
    assert [(piece["index"], piece["text"], piece["logprobs"]) for piece in reader.pieces] == [
        (0, "a", [{"token": "a", "logprob": -0.5}]),
        (1, "b", [{"token": "b", "logprob": -0.5}]),
    ]
