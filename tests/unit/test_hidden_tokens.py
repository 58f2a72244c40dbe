"""Tokens that llama.cpp's streams leave out, found from the text."""

import pytest

from services.engines.hidden_tokens import HiddenTokens

BYTES = [b"", b"a", b"\xe4\xbd", b"\xa0", b"\xf0\x9f", b"\x98", b"\x80", b"\x9f\x98", b"\xf0", b"x\xe4\xbd"]
EMPTY, A, HALF, END, EMOJI, THIRD, LAST, MIDDLE, FIRST, MIXED = range(10)
TOKENS = HiddenTokens(BYTES)


@pytest.mark.parametrize(
    ("text", "count", "last", "expected"),
    [
        ("你", 1, END, [HALF]),
        ("x你", 1, END, [MIXED]),
        ("a你", 2, END, [A, HALF]),
        ("😀", 1, LAST, None),  # no token has the three bytes before the last
        ("😀", 2, LAST, None),  # F0 9F, 98 or F0, 9F 98
        ("你", 2, END, None),
        ("你", 1, LAST, None),
        ("\ufffd", 1, END, None),
        ("你", 1, EMPTY, None),
        ("你", 1, 99, None),
        ("a" * 17 + "你", 18, END, None),
    ],
)
def test_only_a_single_series_of_tokens_is_taken(
    text: str, count: int, last: int, expected: list[int] | None
) -> None:
    assert TOKENS.find(text, count, last) == expected


def test_a_text_that_ends_within_a_character_is_not_sent() -> None:
    ids = [A, HALF, END, EMOJI, THIRD, LAST, HALF, A, A]
    # as validate_utf8 has it, the second to last text, E4 BD 61, ends within a character no more: three bytes are there
    assert TOKENS.visible_ends(ids) == [True, False, True, False, False, True, False, True, True]


def test_a_token_that_is_always_sent_is_known() -> None:
    assert TOKENS.visible == A
    assert TOKENS.rows == len(BYTES)
