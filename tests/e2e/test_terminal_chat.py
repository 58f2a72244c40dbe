"""`graftwerk chat` on a terminal, key by key."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Line
from tests.e2e.product import Json, Product
from tests.redis_server import until
from tests.terminal import Terminal, terminal

pytestmark = pytest.mark.tmux

MERGED = "graftwerk chat merged --template alpaca --temperature 0 --max-new-tokens 48"


@pytest.fixture
def shell(product: Product, line: Line, tmp_path: Path) -> Iterator[Terminal]:
    """A shell whose commands reach the running product; all chats in it share their history."""
    with terminal(tmp_path, GRAFTWERK_URL=product.url, XDG_STATE_HOME=str(tmp_path / "state")) as running:
        yield running


def seen(shell: Terminal, text: str, times: int = 1) -> str:
    """The screen, once it shows a text that many times."""
    shell.wait_for(rf"(?s)(?:.*?{re.escape(text)}){{{times}}}")
    return shell.screen()


def asked(shell: Terminal, number: int) -> str:
    """The screen, once the chat asks for its text of that number, from 1."""
    return seen(shell, "you> ", number)


def left(shell: Terminal) -> None:
    """Ends the chat with Ctrl-D."""
    shell.press("C-d")
    shell.wait_for("^exit code 0$")


def turns(file: Path) -> list[Any]:
    return [turn["content"] for turn in json.loads(file.read_text(encoding="utf-8"))["turns"]]


def test_a_question_in_chinese_is_corrected_with_backspace_and_answered(
    shell: Terminal, questions: list[dict[str, str]]
) -> None:
    one = next(question for question in questions if not question["question"].isascii())
    shell.run(MERGED)
    asked(shell, 1)
    shell.type(one["question"] + "错了")
    seen(shell, "错了")
    shell.press("BSpace", "BSpace", "Enter")
    seen(shell, one["answer"])
    screen = asked(shell, 2)
    assert f"you> {one['question']}\n" in screen
    assert "Half a character" not in screen
    left(shell)


def test_lines_that_are_typed_or_pasted_stay_one_text(shell: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    shell.run(MERGED)
    asked(shell, 1)
    shell.type("line 1")
    shell.press("M-Enter")
    shell.type("第 2 行\n")
    asked(shell, 2)
    shell.paste("def f():\n    return 1\n")
    seen(shell, "return 1")
    shell.press("Enter")
    asked(shell, 3)
    shell.type(f"/save {file}\n")
    seen(shell, "4 turns were saved")
    shell.type("/quit\n")
    shell.wait_for("^exit code 0$")
    assert turns(file)[::2] == ["line 1\n第 2 行", "def f():\n    return 1"]
    shell.restart()
    shell.run(MERGED)  # the texts of the chat before are the history of this one
    asked(shell, 1)
    shell.press("Up", "Up", "Up")
    seen(shell, "return 1")
    shell.press("C-c")
    seen(shell, "Ctrl-D or /quit ends the chat.")
    left(shell)


def test_ctrl_c_stops_an_answer_and_keeps_its_beginning(
    shell: Terminal, product: Product, slow: Json, tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    shell.run("graftwerk chat slow --greedy --max-new-tokens 1500")
    asked(shell, 1)
    shell.type("go on\n")
    job = newest_job(product)
    until(lambda: has_begun(shell.screen()), 60)
    shell.press("C-c")
    seen(shell, "stopped")
    assert product.wait(job)["status"] == "canceled"
    asked(shell, 2)
    shell.type(f"/save {file}\n")
    seen(shell, "turns were saved")
    left(shell)
    question, answer = turns(file)
    assert question == "go on"
    assert 0 < len(answer) < 1500 * 20


def has_begun(screen: str) -> bool:
    """True once a piece of the answer has replaced the note that it is generated."""
    below = screen.partition("go on")[2]
    return bool(below.strip()) and "generating" not in below


def newest_job(product: Product) -> str:
    """The id of the `generate` job of the model `slow`, once there is one."""
    found: list[Json] = []

    def has_one() -> bool:
        found[:] = product.get("/api/jobs", kind="generate", model="slow", limit=1)["jobs"]
        return bool(found) and found[0]["status"] in ("queued", "running")

    until(has_one, 60)
    return str(found[0]["id"])


def test_adapters_are_chosen_scaled_and_compared_in_a_chat(
    shell: Terminal, questions: list[dict[str, str]]
) -> None:
    one = questions[0]
    shell.run("graftwerk chat llama-hf --temperature 0 --max-new-tokens 48")
    asked(shell, 1)
    shell.type("/template alpaca\n")
    seen(shell, "The template is alpaca now.")
    shell.type("/adapter alpaca,zh\n")
    seen(shell, "zh, alpaca")  # refused, with the right order
    shell.type("/adapter zh,alpaca\n")
    seen(shell, "The model is llama-hf+zh+alpaca now.")
    shell.type(one["question"])
    shell.press("Enter")
    seen(shell, one["answer"])
    shell.type("/compare merged\n")
    screen = seen(shell, "The answers are equal.")
    assert screen.count(one["answer"]) == 3
    shell.type("/compare llama-hf\n")
    seen(shell, "▶", 2)
    seen(shell, "The answers differ from token")
    shell.type("/scale zh 0.5\n")
    seen(shell, "The model is llama-hf+zh@0.5+alpaca now.")
    shell.type("/scael zh 1\n")
    seen(shell, "Did you mean /scale")
    left(shell)


def test_names_are_completed_from_the_service(shell: Terminal) -> None:
    shell.run(MERGED)
    asked(shell, 1)
    shell.type("/mod")
    seen(shell, "chats with another model")  # the menu has come
    shell.press("Tab")
    seen(shell, "you> /model")
    shell.type(" llama-")
    seen(shell, "llama-hf")
    shell.press("Tab")
    seen(shell, "you> /model llama-hf")
    shell.press("Enter")
    seen(shell, "The model is llama-hf now.")
    left(shell)


def test_pasted_bytes_that_are_not_text_do_not_end_the_chat(shell: Terminal) -> None:
    shell.run(MERGED)
    asked(shell, 1)
    shell.press("-H", "61", "e7", "be", "62", "ff", "63")
    shell.press("Enter")
    seen(shell, "Half a character was left out; read as: abc")
    asked(shell, 2)
    left(shell)
