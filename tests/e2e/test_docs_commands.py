"""The commands on the pages about the command line and about each kind of job are run, with the miniature in place of 7B."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from graftwerk import Client

from tests.doc_snippets import ROOT, Block, blocks, shell_commands
from tests.e2e.plain_adapter import write_plain_adapter
from tests.e2e.product import LocalStack, local_stack

MINIATURE = ROOT / "examples" / "miniature"
PAGES = [
    "docs/cli.md",
    "docs/get-models-in.md",
    *sorted(f"docs/jobs/{page.name}" for page in (ROOT / "docs" / "jobs").glob("*.md")),
]
NOT_RUN = {
    r"^import hub:|^publish-to-hub ": "needs a Hub: tests/e2e/test_hub.py has one",
    r"^chat ": "waits for typing: tests/unit/test_client_chat.py",
    r"^(serve|demo)\b": "tests/e2e/test_processes.py and `make demo`",
    r"^--(install|show)-completion": "changes the files of a shell",
    r"sha256 7B": "has the digest of the published 7B",
    r"imatrix\.gguf": "a file of llama-imatrix: tests/consumers/test_llama_imatrix.py",
    r"SmolLM2|smollm2|name-q4": "a GGUF file that is not part of the project: tests/consumers/test_gguf_in.py",
    r"^jobs (watch|cancel|retry|log|deliveries) ": "tests/e2e/test_jobs.py, tests/unit/test_client_lists.py",
    r"^chain ": "needs a file: docs/tutorial.md has one, which tests/e2e/test_docs_snippets.py runs",
}
"""Commands that are only parsed (`tests/unit/test_docs_commands.py`), with the reason."""

TEXT = "The capital of France is Paris. Die Hauptstadt ist schön. 中国的首都是北京。 def f(x): return x + 1\n"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A service of these tests alone, with every model that the pages name."""
    folder = tmp_path_factory.mktemp("commands")
    with local_stack(folder / "data") as running, Client(running.url) as client:
        make_models(client, folder)
        yield running


CONVERTED = ("llama-7b", "llama-7b-hf", "llama-13b-hf", "llama-hf")
MERGED = {"vicuna-7b": ["style-lora"], "chinese-alpaca-7b": ["chinese-llama", "chinese-alpaca"]}


def make_models(client: Client, folder: Path) -> None:
    """Makes the models that the pages name: originals, converted and merged ones, adapters."""
    client.push(MINIATURE / "llama", "original").wait()
    client.push(MINIATURE / "llama" / "tokenizer.model", "chinese-sp").wait()
    for number, name in enumerate(("style-lora", "facts-lora", "my-lora")):
        client.push(write_plain_adapter(folder / name, number), name).wait()
    for name in ("chinese-llama", "chinese-alpaca"):
        for suffix in ("", "-lora"):
            client.push(MINIATURE / f"{name}-lora.zip", f"{name}{suffix}").wait()
    restore(client, kinds={})


def restore(client: Client, kinds: dict[str, str]) -> None:
    """Makes the models that are missing; one that a command has made under their name is removed after it."""
    for name in (*CONVERTED, *MERGED):
        if name not in kinds:
            adapters: list[str] = MERGED.get(name, [])
            if adapters:
                client.merge(base="llama-7b-hf", adapters=[*adapters], target=name).wait()
            else:
                client.convert(source="original", target=name).wait()


def commands() -> Iterator[tuple[Block, list[str]]]:
    for page in PAGES:
        for block in blocks(ROOT / page):
            if block.language in ("sh", ""):
                yield from ((block, words[1:]) for words in shell_commands(block) if words[0] == "graftwerk")


COMMANDS = list(commands())
RUN = [
    pytest.param(words, id=f"{block.place} {' '.join(words)[:60]}")
    for block, words in COMMANDS
    if not any(re.search(pattern, " ".join(words)) for pattern in NOT_RUN)
]


def test_each_exception_is_still_needed() -> None:
    lines = [" ".join(words) for _, words in COMMANDS]
    unused = [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for line in lines)]
    assert set(unused) <= {r"^--(install|show)-completion"}
    assert len(RUN) > 40


@pytest.fixture
def folder(tmp_path: Path, stack: LocalStack) -> Path:
    """A working folder with the local files that the commands name, and those under `incoming/`."""
    incoming = stack.models_dir / "incoming"
    if not (incoming / "questions.txt").exists():
        incoming.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(MINIATURE / "llama"), str(incoming)], check=True)
        subprocess.run(["cp", str(MINIATURE / "chinese-llama-lora.zip"), str(incoming)], check=True)
        subprocess.run(
            ["cp", str(MINIATURE / "llama" / "tokenizer.model"), str(incoming / "chinese_sp.model")],
            check=True,
        )
        (incoming / "questions.jsonl").write_text('"What is the capital of France?"\n', encoding="utf-8")
        for name in ("calibration.txt", "held-out.txt", "questions.txt"):
            (incoming / name).write_text(TEXT * (100 if name == "calibration.txt" else 4), encoding="utf-8")
    for name in ("questions.txt", "held-out.txt", "sentences.txt"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    for name in ("my-adapter", "my-model"):
        write_plain_adapter(tmp_path / name, 7)
    subprocess.run(["cp", "-r", str(MINIATURE / "llama"), str(tmp_path)], check=True)
    subprocess.run(
        ["cp", str(MINIATURE / "chinese-llama-lora.zip"), str(tmp_path / "my-adapter.zip")], check=True
    )
    return tmp_path


def made(words: list[str]) -> str | None:
    """Returns the name of the model that a command makes."""
    given = next(
        (words[index + 1] for index, word in enumerate(words) if word in ("--target", "-t", "--name")), None
    )
    plain = [word for word in words[1:] if not word.startswith("-")]
    names = {"convert": plain[1] if len(plain) > 1 else None, "push": Path(plain[0]).name if plain else None}
    return given or names.get(words[0]) or (Path(plain[0]).stem if words[0] == "import" else None)


@pytest.mark.parametrize("words", RUN)
def test_a_documented_command_succeeds(words: list[str], stack: LocalStack, folder: Path) -> None:
    with Client(stack.url) as client:
        kinds = {model.name: model.kind for model in client.models()}
        restore(client, kinds)
        target = made(words)
        if target in kinds and "--dry-run" not in words:
            client.delete_model(target)
        if words[:2] == ["models", "rm"]:
            client.convert(source="original", target=words[2]).wait()
    local = {"/mnt/models": str(folder / "mnt"), "~/models/llama": str(folder / "llama")}
    done = subprocess.run(
        [sys.executable, "-m", "graftwerk", *(local.get(word, word) for word in words)],
        cwd=folder, env={**os.environ, "GRAFTWERK_URL": stack.url}, input="A prompt\n", capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    if target in (*CONVERTED, *MERGED):
        with Client(stack.url) as client:
            client.delete_model(target)
