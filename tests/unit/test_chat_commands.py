"""Commands of `graftwerk chat`."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from graftwerk.chat.commands import COMMANDS
from typer.testing import Result

from tests.client_service import Run, Service, generated

REFUSAL = {"code": "model_not_found", "detail": "There is no model [x].", "hint": "Import it."}


@pytest.fixture(autouse=True)
def answers(service: Service) -> None:
    service.result = generated({"text": "hello"})


@pytest.fixture
def chat(run: Run) -> Any:
    """Runs a chat with the model `m` and the lines as input."""
    return lambda *lines, **more: run("chat", "m", *more.get("options", ()), input="\n".join(lines) + "\n")


def submitted(service: Service) -> list[dict[str, Any]]:
    return [
        json.loads(request.content)
        for request in service.seen
        if request.method == "POST" and request.url.path == "/api/jobs" and not request.url.query
    ]


def test_an_unknown_command_names_near_ones_and_is_not_sent(service: Service, chat: Any) -> None:
    result = chat("/modle x", "/qqq\tx")
    assert "There is no command /modle, and nothing was sent to the model." in result.stderr
    assert "Did you mean /model?" in result.stderr
    assert "There is no command /qqq" in result.stderr
    assert submitted(service) == []


def test_a_text_may_begin_with_a_slash_that_is_doubled(service: Service, chat: Any) -> None:
    chat("//usr is a folder")
    assert submitted(service)[0]["messages"] == [{"role": "user", "content": "/usr is a folder"}]


def test_help_lists_every_command_and_the_settings(chat: Any) -> None:
    shown = chat("/seed 7", "/system be kind", "/help").stderr
    names = [
        "help",
        "system",
        "model",
        "adapter",
        "scale",
        "seed",
        "template",
        "save",
        "load",
        "compare",
        "reset",
        "quit",
    ]
    for name in names:
        assert f"\n/{name} " in shown, name
    assert "Now: model m, template the model's own, seed 7, system be kind" in shown


def test_settings_change_the_next_request(service: Service, chat: Any) -> None:
    chat(
        "/adapter zh, alpaca@0.5", "/scale zh 0.25", "/seed 7", "/template alpaca", "/system be kind", "one",
        "/adapter", "/seed", "/template", "/system", "two", "/model other+zh", "three",
        options=("--temperature", "0"),
    )  # fmt: skip
    one, two, three = submitted(service)
    messages = one.pop("messages")
    assert messages == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "one"}]
    assert one == {
        "kind": "generate", "model": "m", "template": "alpaca", "fit_context": True,
        "adapters": [{"name": "zh", "scale": 0.25}, {"name": "alpaca", "scale": 0.5}],
        "sampling": {"temperature": 0.0, "seed": 7},
    }  # fmt: skip
    assert [turn["content"] for turn in two.pop("messages")] == ["one", "hello", "two"]
    assert two == {"kind": "generate", "model": "m", "fit_context": True, "sampling": {"temperature": 0.0}}
    assert (three["model"], three["adapters"]) == ("other", ["zh"])


def test_a_setting_that_the_service_refuses_changes_nothing(service: Service, chat: Any) -> None:
    plain = service.of_jobs

    def refusing(request: httpx.Request) -> httpx.Response:
        if request.url.query and json.loads(request.content)["model"] == "x":
            return httpx.Response(404, json=REFUSAL)
        return plain(request)

    service.of_jobs = refusing  # type: ignore[method-assign]
    result = chat("/model x", "hi")
    assert result.stderr.count("error: There is no model [x].\n       Import it.") == 1
    assert submitted(service)[0]["model"] == "m"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/scale zh 2", "zh is not an adapter of this chat; its adapters: none."),
        ("/scale zh", "/scale needs an adapter and a factor."),
        ("/seed many", "'many' is not a seed."),
        ("/save", "/save needs a file."),
        ("/load", "/load needs a file."),
        ("/compare", "/compare needs a model."),
        ("/compare other", "There is no question to compare the answers of."),
        ("/adapter zh@big", "The scale in 'zh@big' is not a number."),
    ],
)
def test_an_argument_that_is_not_valid_is_refused_with_a_reason(
    service: Service, chat: Any, line: str, message: str
) -> None:
    result: Result = chat(line)
    assert result.exit_code == 0
    assert message in result.stderr
    assert submitted(service) == []


# ---- /save and /load ----------------------------------------------------------------------------------


def test_a_saved_conversation_is_continued_as_it_was(service: Service, chat: Any, tmp_path: Path) -> None:
    file = tmp_path / "中文 chat.json"
    chat("/adapter zh@0.5", "/seed 7", "/system be kind", "你好", f"/save {file}")
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["turns"] == [
        {"role": "user", "content": "你好"}, {"role": "assistant", "content": "hello"},
    ]  # fmt: skip
    service.seen.clear()
    result = chat(f"/load {file}", "and then?")
    assert "2 turns with m+zh@0.5 were loaded" in result.stderr
    (request,) = submitted(service)
    assert [turn["content"] for turn in request["messages"]] == ["be kind", "你好", "hello", "and then?"]
    assert (request["adapters"], request["sampling"]) == ([{"name": "zh", "scale": 0.5}], {"seed": 7})
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_of_something_else_is_neither_overwritten_nor_loaded(
    service: Service, chat: Any, tmp_path: Path
) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    result = chat(f"/save {file}", f"/load {file}", f"/load {tmp_path / 'missing'}", "hi")
    assert "exists and is not a saved conversation" in result.stderr
    assert "notes.txt is not a saved conversation." in result.stderr
    assert "cannot be read: No such file or directory" in result.stderr
    assert file.read_text() == "mine"
    assert [turn["content"] for turn in submitted(service)[0]["messages"]] == ["hi"]


def test_a_saved_conversation_is_replaced_by_a_later_one(chat: Any, tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    chat("one", f"/save {file}", "two", f"/save {file}")
    assert len(json.loads(file.read_text())["turns"]) == 4


def test_a_conversation_that_is_damaged_in_one_turn_is_not_loaded_at_all(
    service: Service, chat: Any, tmp_path: Path
) -> None:
    file = tmp_path / "chat.json"
    chat("one", "two", f"/save {file}")
    saved = json.loads(file.read_text())
    saved["turns"][3]["role"] = "boss"
    file.write_text(json.dumps(saved))
    service.seen.clear()
    chat(f"/load {file}", "hi")
    assert [turn["content"] for turn in submitted(service)[0]["messages"]] == ["hi"]


# ---- /compare -----------------------------------------------------------------------------------------


def compared(one: str, other: str, token: int | None, character: int | None) -> dict[str, Any]:
    labels = ["m", "base+zh"]
    return {
        "seed": 11,
        "variants": [{"label": label, "model": label} for label in labels],
        "comparisons": [
            {
                "prompt": "p",
                "outputs": [{"prompt": "p", "text": one}, {"prompt": "p", "text": other}],
                "differences": [{"variants": labels, "token": token, "character": character}],
            }
        ],
        "pairs": [],
    }


class Comparing(Service):
    """A service whose `compare` jobs have a result of their own."""

    comparison: dict[str, Any]

    def job(self, status: str) -> dict[str, Any]:
        last = submitted(self)[-1]
        result = self.comparison if last["kind"] == "compare" else generated({"text": "hello"})
        return super().job(status) | {
            "kind": last["kind"],
            "result": result if status == "succeeded" else None,
        }


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch, service: Service) -> Comparing:
    comparing = Comparing()
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(comparing))
    return comparing


def test_compare_asks_both_models_the_last_question_and_marks_the_first_difference(
    comparing: Comparing, chat: Any
) -> None:
    comparing.comparison = compared("hello you", "hello all", 1, 6)
    result = chat("one", "two", "/compare base+zh@0.5", options=("--seed", "7", "--quantization", "8bit"))
    assert (
        result.stdout
        == "hello\nhello\nm:\nhello ▶you\nbase+zh:\nhello ▶all\nThe answers differ from token 2 on. Seed 11.\n"
    )
    request = submitted(comparing)[2]
    assert [turn["content"] for turn in request.pop("messages")] == ["one", "hello", "two"]
    assert request == {
        "kind": "compare", "sampling": {"seed": 7}, "fit_context": True,
        "variants": [
            {"model": "m", "adapters": [], "quantization": "8bit", "label": "m"},
            {"model": "base", "adapters": [{"name": "zh", "scale": 0.5}], "quantization": "8bit", "label": "base+zh@0.5"},
        ],
    }  # fmt: skip


def test_compare_says_that_answers_are_equal_and_names_one_model_twice(
    comparing: Comparing, chat: Any
) -> None:
    comparing.comparison = compared("hello", "hello", None, None)
    result = chat("one", "/compare m")
    assert result.stdout.endswith("m:\nhello\nbase+zh:\nhello\nThe answers are equal. Seed 11.\n")
    labels = [variant["label"] for variant in submitted(comparing)[1]["variants"]]
    assert labels == ["m", "m (2)"]


def test_compare_prints_an_answer_that_failed_and_several_answers(comparing: Comparing, chat: Any) -> None:
    failed = compared("hello", "", None, None)
    failure = {"code": "context_exceeded", "message": "The prompt is too long.", "hint": "Shorten it."}
    failed["comparisons"][0] |= {"differences": []}
    failed["comparisons"][0]["outputs"][1] = {"prompt": "p", "text": None, "error": failure}
    failed["comparisons"] += compared("a", "b", 0, 0)["comparisons"]
    comparing.comparison = failed
    shown = chat("one", "/compare base+zh").stdout
    assert "m:\nhello\nbase+zh:\nerror: The prompt is too long." in shown
    assert "The answers were not compared. Seed 11.\nm:\n▶a\nbase+zh:\n▶b\n" in shown


def test_a_comparison_is_not_part_of_the_conversation(comparing: Comparing, chat: Any) -> None:
    comparing.comparison = compared("a", "b", 0, 0)
    chat("one", "/compare base", "two")
    assert [turn["content"] for turn in submitted(comparing)[2]["messages"]] == ["one", "hello", "two"]


def test_the_page_of_the_command_line_has_every_command() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    section = page.partition("## `graftwerk chat`")[2].partition("\n## ")[0]
    cells = "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    documented = set(re.findall(r"/[a-z]+", cells))
    assert documented == set(COMMANDS)
