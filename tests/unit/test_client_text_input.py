"""Typed text is made valid Unicode."""

import pytest
from graftwerk.text_input import without_surrogates


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("你\udce5\udca5", "你"),  # a third of a character is left after a backspace
        ("\udce4\udcbd\udca0", "你"),  # a whole one that a C locale did not decode
        ("a\ud800b", "ab"),
        ("plain 中文", "plain 中文"),
    ],
)
def test_half_characters_are_removed_from_typed_text(typed: str, text: str) -> None:
    assert without_surrogates(typed) == text
