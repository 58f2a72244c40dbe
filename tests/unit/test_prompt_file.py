"""Files of prompts: what each form of them asks, and what is refused with its place."""

from pathlib import Path

import pytest

from services.errors import GraftwerkError
from services.models.prompt_file import PromptEntry, read_prompt_file
from services.templates import Message

pytestmark = pytest.mark.disable_socket


def read(folder: Path, name: str, content: str | bytes) -> list[PromptEntry]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_prompt_file(path, f"incoming/{name}").prompts


def test_a_text_has_a_prompt_a_line_and_empty_lines_are_none(tmp_path: Path) -> None:
    text = '\ufeff一\r\n\r\n  two \n   \n{"prompt": "as it stands"}'
    assert [entry.prompt for entry in read(tmp_path, "p.txt", text)] == [
        "一",
        "  two ",
        '{"prompt": "as it stands"}',
    ]


def test_only_a_newline_ends_a_prompt(tmp_path: Path) -> None:
    assert [entry.prompt for entry in read(tmp_path, "p", "a\u2028b\x0cc\nd")] == ["a\u2028b\x0cc", "d"]


def test_json_lines_are_texts_or_objects(tmp_path: Path) -> None:
    lines = (
        '"say\\nhi"\n'
        '{"prompt": "p", "input": "i", "system": "s"}\n\n'
        '{"messages": [{"role": "user", "content": "u\u2028v"}]}\n'
    )
    assert read(tmp_path, "p.jsonl", lines) == [
        PromptEntry(prompt="say\nhi"),
        PromptEntry(prompt="p", input="i", system="s"),
        PromptEntry(messages=(Message(role="user", content="u\u2028v"),)),
    ]


def test_a_json_list_holds_the_same_values(tmp_path: Path) -> None:
    found = read(tmp_path, "p.json", '["one", "", {"prompt": "two"}]')
    assert found == [PromptEntry(prompt="one"), PromptEntry(prompt="two")]
    assert [entry.text for entry in found] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("p.txt", "中文".encode("gbk"), "unreadable_file", "not a UTF-8 text"),
        ("p.txt", "\n \n", "unreadable_file", "has no prompts"),
        ("p.jsonl", '"a"\n{"prompt": ', "unreadable_file", "line 2 of incoming/p.jsonl is not valid JSON"),
        ("p.jsonl", '"a"\n\n7', "unreadable_file", "line 3 of incoming/p.jsonl is not a prompt"),
        ("p.jsonl", '{"text": "a"}', "unreadable_file", "line 1 of incoming/p.jsonl is not a prompt"),
        ("p.jsonl", '{"prompt": "a", "temp": 1}', "unreadable_file", "temp: Extra inputs"),
        ("p.jsonl", '{"prompt": "a", "messages": []}', "unreadable_file", "messages"),
        (
            "p.jsonl",
            '{"system": "a"}',
            "unreadable_file",
            "exactly one of prompt, messages and prompt_token_ids",
        ),
        ("p.jsonl", '"a"\n"half \\ud83d"', "invalid_text", "line 2 of incoming/p.jsonl: The text has a lone"),
        ("p.jsonl", '{"messages": [{"role": "user", "content": "\\udc00"}]}', "invalid_text", "line 1"),
        ("p.json", '{"prompt": "a"}', "unreadable_file", "is not a JSON list"),
        ("p.json", '["a", null]', "unreadable_file", "prompt 2 of incoming/p.json is not a prompt"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, code: str, said: str
) -> None:
    with pytest.raises(GraftwerkError) as refused:
        read(tmp_path, name, content)
    assert refused.value.code == code
    assert said in refused.value.message
    assert refused.value.hint


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"abc")
    # FIPS 180-4, example for SHA-256
    assert read_prompt_file(tmp_path / "p", "p").digest == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
