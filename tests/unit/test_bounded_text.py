"""Texts of bounded length."""

import pytest

from services.bounded_text import TEXT_LIMIT, WORD_LIMIT, bounded, cut, listed
from services.errors import ModelNotFound
from services.jobs.records import Failure

pytestmark = pytest.mark.disable_socket


def test_an_ordinary_message_is_unchanged() -> None:
    text = f"The file {'a' * 255!r} has 7 rows; 8 are needed. " * 4
    assert bounded(text) == text


def test_a_long_name_is_cut_in_the_middle_and_the_sentence_stays() -> None:
    name = "begin" + "x" * 1_000_000 + "end"
    found = bounded(f"The model '{name}' does not exist.")
    assert found.startswith("The model 'beginxxx")
    assert found.endswith("xxxend' does not exist.")
    assert "999" in found, "it says how much is left out"
    assert len(found) < WORD_LIMIT + 40


def test_a_long_text_of_short_words_is_cut_too() -> None:
    found = bounded("word " * 1_000_000)
    assert len(found) <= TEXT_LIMIT
    assert found.startswith("word word")


@pytest.mark.parametrize("length", [99, 100, 101, 5000])
def test_a_cut_text_has_at_most_the_limit_and_says_its_rest(length: int) -> None:
    text = "".join(chr(97 + number % 26) for number in range(length))
    found = cut(text, 100)
    assert len(found) <= 100
    if length <= 100:
        assert found == text
        return
    begin, rest, end = found.split("…")
    assert text.startswith(begin)
    assert text.endswith(end)
    assert rest == f"[{length - len(begin) - len(end)} characters]"


def test_a_list_ends_with_the_count_of_the_others() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(930)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 920 more"


def test_an_error_and_its_record_are_bounded() -> None:
    error = ModelNotFound(f"No model is named {'x' * 7_000_000!r}.", "Name " + "y" * 7_000_000)
    assert len(error.message) + len(error.hint) + len(str(error)) < 2000
    assert len(Failure.of(error).dumps()) < 2000
