"""Commands in the documentation: each `graftwerk …` is parsed by the command itself, and its request is a valid one.

Other programs are not run here; each is named below with what is checked of it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
import pytest
import yaml
from graftwerk.commands import app
from pydantic import TypeAdapter
from typer.main import get_command
from typer.testing import CliRunner

from api.responses import JobBody
from services.kinds import KINDS
from tests.doc_snippets import ROOT, Block, all_blocks, shell_commands

ELSEWHERE = {
    "docker": "needs a Docker engine; its files and services are checked here",
    "git": "changes the checkout",
    "pip": "needs a package index",
    "ollama": "is not installed with the project",
    "open-webui": "is not installed with the project",
    "lm_eval": "is not installed with the project",
    "openssl": "is part of a line that is run by docs/api.md's readers",
}
"""Programs that no test runs, with the reason."""

SHELL = {"cp", "mkdir", "echo", "printf", "cat", "ls", "cd", "source", "chmod", "export"}
PYTHON_MODULES = {"bench"}
OLD_SCRIPTS = {
    "convert_llama_weights_to_hf.py",
    "merge_llama_with_chinese_lora_low_mem.py",
    "inference_hf.py",
}
LOCAL_FILES = ("questions.txt", "held-out.txt", "sentences.txt")
ROOT_COMMAND: Any = get_command(app)
BODY: TypeAdapter[Any] = TypeAdapter(JobBody)

Command = tuple[Block, list[str]]


def commands() -> Iterator[Command]:
    for block in all_blocks():
        if block.language in ("sh", ""):
            for words in shell_commands(block):
                yield block, words


COMMANDS = list(commands())


def of(program: str) -> list[Any]:
    """The commands of a program, as parameters of a test."""
    found = [(block, words[1:]) for block, words in COMMANDS if Path(words[0]).name == program]
    return [pytest.param(block, words, id=f"{block.place} {' '.join(words)[:60]}") for block, words in found]


def submits(words: list[str]) -> bool:
    """True for a command that submits a job without an upload before it."""
    return words[0] in KINDS and (words[0] != "import" or words[1].startswith(("incoming/", "hub:")))


def test_the_documentation_has_commands_of_known_programs_only() -> None:
    assert len(COMMANDS) > 250
    known = {"graftwerk", "curl", "make", "python", *SHELL, *ELSEWHERE}
    unknown = [f"{block.place}: {words[0]}" for block, words in COMMANDS if Path(words[0]).name not in known]
    assert unknown == []


@pytest.mark.parametrize(("block", "words"), of("graftwerk"))
def test_a_command_is_one_that_graftwerk_parses(block: Block, words: list[str]) -> None:
    command, rest, names = ROOT_COMMAND, list(words), ["graftwerk"]
    while rest and rest[0] in getattr(command, "commands", {}):
        names.append(rest[0])
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        with command.make_context(" ".join(names), list(rest)) as context:
            assert not hasattr(command, "commands") or command.invoke_without_command, words
            assert context.args == []
    except click.exceptions.Exit as ended:
        assert ended.exit_code == 0, words


@pytest.mark.parametrize(("block", "words"), [param for param in of("graftwerk") if submits(param.values[1])])
def test_a_job_command_sends_a_valid_request(
    block: Block, words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GRAFTWERK_URL", raising=False)
    for name in LOCAL_FILES:
        Path(name).write_text("The capital of France is Paris.\n", encoding="utf-8")
    sent: list[dict[str, Any]] = []

    def refuse(self: httpx.Client, request: httpx.Request, **_: Any) -> httpx.Response:
        sent.append(json.loads(request.read()))
        problem = {"code": "model_not_found", "detail": "There is no such model.", "hint": "Import it."}
        return httpx.Response(
            404, json=problem, headers={"Content-Type": "application/problem+json"}, request=request
        )

    monkeypatch.setattr(httpx.Client, "send", refuse)
    done = CliRunner().invoke(app, words, input="A prompt\n")
    assert done.exit_code == 3, done.output
    assert len(sent) == 1
    assert BODY.validate_python(sent[0]).root.kind == words[0]


@pytest.mark.parametrize(("block", "words"), of("make"))
def test_a_target_of_make_exists(block: Block, words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in words if "=" not in word]
    assert all(re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE) for target in targets)


@pytest.mark.parametrize(("block", "words"), of("docker"))
def test_a_compose_command_names_files_and_services_that_exist(block: Block, words: list[str]) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    assert words[0] == "compose"
    assert all((ROOT / words[index + 1]).is_file() for index, word in enumerate(words) if word == "-f")
    verbs = {"up", "down", "cp", "exec", "run", "stop", "start"}
    verb = next(index for index, word in enumerate(words) if word in verbs)
    plain = [word for word in words[verb + 1 :] if not word.startswith("-")]
    named = {"cp": [word.split(":")[0] for word in plain if ":" in word], "stop": plain, "start": plain}
    if words[verb] in ("exec", "run"):
        assert set(plain) & set(services), words
    assert all(service in services for service in named.get(words[verb], []))


@pytest.mark.parametrize(("block", "words"), of("python"))
def test_a_python_command_is_of_the_project_or_of_the_scripts_of_2023(block: Block, words: list[str]) -> None:
    if words[0] == "-m":
        assert words[1] in PYTHON_MODULES | {"graftwerk", "tests.chaos"}
    else:
        assert words[0] in OLD_SCRIPTS or (ROOT / words[0]).is_file()
