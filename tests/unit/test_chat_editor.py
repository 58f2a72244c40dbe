"""The editor of `graftwerk chat`: keys, pasted text, history and completion."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from graftwerk.chat.completion import ChatCompleter, Names
from graftwerk.chat.editor import Editor
from graftwerk.chat.history import PrivateHistory, open_history
from graftwerk.client import Client
from graftwerk.display import open_console
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from tests.client_service import Service

ENTER, ALT_ENTER, BACKSPACE = "\r", "\x1b\r", "\x7f"
CTRL_A, CTRL_C, CTRL_D, UP = "\x01", "\x03", "\x04", "\x1b[A"
PASTE = "\x1b[200~{}\x1b[201~"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    """The keyboard of a terminal."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


@pytest.fixture
def names(service: Service) -> Names:
    return Names(Client())


def typed(keys: PipeInput, names: Names, text: str) -> str:
    keys.send_text(text)
    return Editor(names, InMemoryHistory()).read()


@pytest.mark.parametrize(
    ("pressed", "text"),
    [
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        (f"{PASTE.format('def f():' + chr(13) + '    return 1')}{ENTER}", "def f():\n    return 1"),
        (f"你好吗{BACKSPACE}{BACKSPACE}们{ENTER}", "你们"),
        (f"羊驼🦙{BACKSPACE}是什么{ENTER}", "羊驼是什么"),
        (f"b{CTRL_A}a{ENTER}", "ab"),
        (f"{PASTE.format('x' * 5000)}{ENTER}", "x" * 5000),
    ],
)
def test_texts_are_what_was_typed(keys: PipeInput, names: Names, pressed: str, text: str) -> None:
    assert typed(keys, names, pressed) == text


def test_characters_whose_bytes_arrive_apart_are_whole(keys: PipeInput, names: Names) -> None:
    for byte in "羊驼\r".encode():
        keys.send_bytes(bytes([byte]))
    assert Editor(names, InMemoryHistory()).read() == "羊驼"


def test_bytes_that_are_not_text_do_not_end_the_chat(keys: PipeInput, names: Names) -> None:
    keys.send_bytes(b"a\xe7\xbeb\xffc\r")
    assert Editor(names, InMemoryHistory()).read().replace("\udce7\udcbe", "").replace("\udcff", "") == "abc"


@pytest.mark.parametrize(("pressed", "error"), [(f"abc{CTRL_C}", KeyboardInterrupt), (CTRL_D, EOFError)])
def test_ctrl_c_leaves_the_line_and_ctrl_d_the_chat(
    keys: PipeInput, names: Names, pressed: str, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        typed(keys, names, pressed)


def test_texts_of_earlier_chats_come_back_from_a_private_file(
    keys: PipeInput, names: Names, tmp_path: Path
) -> None:
    file = tmp_path / "state" / "chat_history"
    keys.send_text(f"first{ALT_ENTER}second 你好{ENTER}")
    Editor(names, PrivateHistory(file)).read()
    keys.send_text(f"{UP}!{ENTER}")
    assert Editor(names, PrivateHistory(file)).read() == "first\nsecond 你好!"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_half_characters_do_not_reach_the_history(tmp_path: Path) -> None:
    file = tmp_path / "chat_history"
    PrivateHistory(file).append_string("a\udce4b")
    assert list(PrivateHistory(file).load_history_strings()) == ["ab"]


def test_a_state_folder_that_cannot_be_written_costs_only_the_history(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert list(open_history(open_console(stderr=True)).load_history_strings()) == []
    assert "Texts of this chat are not kept for the next one: Not a directory" in capsys.readouterr().err


# ---- completion ---------------------------------------------------------------------------------------

MODELS = {
    "llama": "original",
    "llama-hf": "huggingface",
    "zh": "adapter",
    "zh-more": "adapter",
    "pieces": "tokenizer",
}


LISTS = {
    "/api/models": {
        "models": [{"name": name, "kind": kind, "size_bytes": 1} for name, kind in MODELS.items()]
    },
    "/api/templates": {
        "templates": [
            {"name": name, "description": "", "default_system": None, "example": None, "stop": []}
            for name in ("model", "alpaca")
        ]
    },
}


@pytest.fixture
def volume(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=LISTS[request.url.path])

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(handler))


def completed(names: Names, line: str) -> list[str]:
    """The lines that the completions of a line make."""
    found = ChatCompleter(names).get_completions(Document(line, len(line)), CompleteEvent())
    return [line[: len(line) + one.start_position] + one.text for one in found]


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("/s", ["/system", "/scale", "/seed", "/save"]),
        ("/model l", ["/model llama", "/model llama-hf"]),
        ("/compare llama+zh", ["/compare llama+zh", "/compare llama+zh-more"]),
        ("/compare llama+zh+", ["/compare llama+zh+zh", "/compare llama+zh+zh-more"]),
        ("/adapter zh-more, z", ["/adapter zh-more, zh", "/adapter zh-more, zh-more"]),
        ("/scale z", ["/scale zh", "/scale zh-more"]),
        ("/template al", ["/template alpaca"]),
        ("/seed ", []),
        ("hello /s", []),
        ("/s\n", []),
    ],
)
@pytest.mark.usefixtures("volume")
def test_commands_and_names_are_completed(line: str, lines: list[str]) -> None:
    assert completed(Names(Client("http://graftwerk.test")), line) == lines


def test_files_are_completed(names: Names, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text("")
    assert completed(names, f"/load {tmp_path}/ch") == [f"/load {tmp_path}/chat.json"]


def test_names_are_requested_again_after_ten_seconds(service: Service) -> None:
    now = iter([0.0, 0.0, 9.0, 10.0, 10.0])
    names = Names(Client(), clock=lambda: next(now))
    for _ in range(3):
        assert names.adapters() == ["ab"]
    assert len(service.seen) == 2


def test_a_service_that_does_not_respond_completes_nothing(service: Service, names: Names) -> None:
    service.refusal = httpx.Response(503)
    assert completed(names, "/model ") == []
