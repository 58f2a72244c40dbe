"""The form of outputs on the command line."""

from pathlib import Path

import pytest
from graftwerk.arguments import form_fields
from graftwerk.errors import UsageError


def test_json_is_any_object_and_a_file_is_its_schema(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "integer"}', encoding="utf-8")
    assert form_fields("json", None) == {"response_format": {"type": "json_object"}}
    schema = {"name": "output", "schema": {"type": "integer"}}
    expected = {"response_format": {"type": "json_schema", "json_schema": schema}}
    assert form_fields(str(file), None) == expected
    assert form_fields(None, "a|b") == {"guided_regex": "a|b"}
    assert form_fields(None, None) == {}


@pytest.mark.parametrize(("content", "words"), [("{", "is not JSON"), ("[1]", "is not a JSON object")])
def test_a_file_that_is_not_a_schema_is_refused(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "schema.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=words):
        form_fields(str(file), None)


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        form_fields(str(tmp_path / "none.json"), None)
