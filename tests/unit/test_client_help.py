"""`--version`, help in its three forms, completion of names, and a start without heavy libraries."""

import subprocess
import sys
from importlib.metadata import version

import httpx
import pytest

from tests.client_service import ID, Run, Service


def test_the_version_is_that_of_the_distribution(run: Run) -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"graftwerk {version('graftwerk')}\n")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ((), "publish-to-hub"),
        (("merge",), "--base-precision"),
        (("jobs",), "watch"),
        (("jobs", "watch"), "ID"),
    ],
)
def test_help_is_the_same_as_h_and_the_long_option(run: Run, command: tuple[str, ...], names: str) -> None:
    outputs = {
        run(*arguments).stdout for arguments in (["help", *command], [*command, "-h"], [*command, "--help"])
    }
    assert len(outputs) == 1
    assert names in outputs.pop()


def test_help_of_a_command_that_there_is_not_ends_with_2(run: Run) -> None:
    result = run("help", "mrege")
    assert result.exit_code == 2
    assert "No such command 'mrege'" in result.stderr


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_start_loads_neither_http_nor_models(argument: str) -> None:
    code = (
        "import sys\nfrom graftwerk.__main__ import main\n"
        f"sys.argv = ['graftwerk', {argument!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(str({'httpx', 'pydantic', 'asyncio', 'prompt_toolkit', 'yaml'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "set()\n"


MODELS = [
    {"name": "llama", "kind": "original"},
    {"name": "zh", "kind": "adapter"},
    {"name": "zh-alpaca", "kind": "adapter"},
    {"name": "zulu", "kind": "huggingface"},
]
OTHER = "99999999-2222-3333-4444-555555555555"


class Names(Service):
    """A service with models, jobs and templates to choose from."""

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        jobs = [
            {"id": ID, "kind": "merge", "status": "running"},
            {"id": OTHER, "kind": "merge", "status": "failed"},
        ]
        lists = {"models": MODELS, "jobs": jobs, "templates": [{"name": "alpaca"}, {"name": "vicuna"}]}
        name = request.url.path.rpartition("/")[2]
        return httpx.Response(200, json={name: lists[name]})


def complete(run: Run, line: str) -> list[str]:
    """Returns what bash would offer for the last word of a line."""
    words = line.split(" ")
    environment = {
        "_GRAFTWERK_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    result = run(env=environment)
    assert (result.stderr, result.exit_code) == ("", 0)
    return [line for line in result.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("graftwerk publ", ["publish-to-hub"]),
        ("graftwerk chat ", ["llama", "zulu"]),
        ("graftwerk chat z", ["zulu"]),
        ("graftwerk pull z", ["zh", "zh-alpaca", "zulu"]),
        ("graftwerk merge llama --adapters zh", ["zh", "zh-alpaca"]),
        ("graftwerk merge llama -a zh,zh-", ["zh,zh-alpaca"]),
        ("graftwerk models rm l", ["llama"]),
        ("graftwerk generate llama --template v", ["vicuna"]),
        ("graftwerk jobs cancel ", [ID]),
        ("graftwerk jobs log 9", [OTHER]),
        ("graftwerk convert llama new --after 1", [ID]),
    ],
)  # fmt: skip
def test_names_of_the_service_are_completed(
    monkeypatch: pytest.MonkeyPatch, run: Run, line: str, offered: list[str]
) -> None:
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(Names()))
    assert complete(run, line) == offered


def test_completion_asks_the_service_that_the_line_names(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    names = Names()
    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(names))
    monkeypatch.setenv("GRAFTWERK_API_KEY", "secret")
    assert complete(run, "graftwerk chat --url http://other.test:9 z") == ["zulu"]
    (request,) = names.seen
    assert str(request.url) == "http://other.test:9/api/models"
    assert request.headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "response",
    [httpx.ConnectError("refused"), httpx.Response(401, json={}), httpx.Response(200, text="<html>"),
     httpx.Response(200, json={"models": [{"name": 1}]}), httpx.Response(200, json=[])],
)  # fmt: skip
def test_completion_is_silent_where_the_service_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, run: Run, response: httpx.Response | Exception
) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        if isinstance(response, Exception):
            raise response
        return response

    monkeypatch.setattr(httpx, "HTTPTransport", lambda **_: httpx.MockTransport(answer))
    assert complete(run, "graftwerk chat ") == []
