"""The documentation's walks are run as they are: every shell and Python block of these pages, in order, against a real service.

A block whose fence says `exit=N` must end so, one with `file=NAME` is the file that a later command reads. A `text` block after it is what the command prints, up to its numbers. Blocks without a language are not
run: they start the service, wait for typing, or need 7B. The other pages: `tests/unit/test_docs_commands.py`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from graftwerk import Client

from tests.doc_snippets import ROOT, Block, blocks
from tests.e2e.product import LocalStack, local_stack

DOCUMENTED_URL = "http://127.0.0.1:8000"
TRANSLATIONS = {"docs/tutorial.md": "docs/zh/tutorial.md"}
MINIATURE = ROOT / "examples" / "miniature"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A service of these tests alone: the walks choose the names of their models."""
    with local_stack(tmp_path_factory.mktemp("walk") / "data") as running:
        yield running


@pytest.fixture
def checkout(stack: LocalStack, tmp_path: Path) -> Iterator[Path]:
    """A folder that looks like a checkout whose service runs, with an empty volume."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "models").symlink_to(stack.models_dir)
    yield tmp_path
    with Client(stack.url) as client:
        for handle in [client.job(job.id) for job in client.jobs() if not job.ended]:
            handle.wait(timeout=60)
        for model in client.models():
            client.delete_model(model.name)
    subprocess.run(["rm", "-rf", str(stack.models_dir / "incoming")], check=True)


@pytest.fixture
def walked(stack: LocalStack, checkout: Path) -> Path:
    """The folder after the main job: `llama`, `llama-hf`, both adapters and `chinese-alpaca` are on the volume."""
    with Client(stack.url) as client:
        client.push(MINIATURE / "llama", "llama").wait()
        for name in ("chinese-llama-lora", "chinese-alpaca-lora"):
            client.push(MINIATURE / f"{name}.zip", name).wait()
        client.convert(source="llama", target="llama-hf").wait()
        adapters: list[str] = ["chinese-llama-lora", "chinese-alpaca-lora"]
        client.merge(base="llama-hf", adapters=[*adapters], target="chinese-alpaca").wait()
    return checkout


def runnable(page: str) -> list[Block]:
    """The blocks of a page that are run, and what they print."""
    return [block for block in blocks(ROOT / page) if block.language in ("sh", "python", "text", "yaml")]


def run(block: Block, folder: Path, url: str) -> str:
    """Runs a block in a folder and returns what it prints; its exit status must be the documented one."""
    text = block.text.replace(DOCUMENTED_URL, url).replace("curl -s ", "curl -sSf ")
    python = [sys.executable, "-c", text]
    command = python if block.language == "python" else ["bash", "-euo", "pipefail", "-c", text]
    environment = {
        **os.environ,
        "GRAFTWERK_URL": url,
        "URL": url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "500",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    expected = int((re.search(r"exit=(\d+)", block.options) or [0, 0])[1])
    assert done.returncode == expected, f"{block.place}: {text}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def without_numbers(text: str) -> str:
    """Returns a text with each number as 0: times and the like differ from run to run."""
    return re.sub(r"\d[\d.,]*", "0", text)


def walk(page: str, folder: Path, url: str) -> int:
    """Runs the blocks of a page and returns their number."""
    count, printed = 0, ""
    for block in runnable(page):
        if block.language == "text":
            assert without_numbers(block.text.strip()) in without_numbers(printed), (
                f"{block.place}: {printed}"
            )
        elif name := block.options.partition("file=")[2]:
            (folder / name).write_text(block.text, encoding="utf-8")
        else:
            printed = run(block, folder, url)
            count += 1
    return count


def test_the_tutorial_can_be_followed(stack: LocalStack, checkout: Path) -> None:
    assert walk("docs/tutorial.md", checkout, stack.url) > 15
    with Client(stack.url) as client:
        names = {model.name for model in client.models()}
    assert {"chinese-alpaca", "chinese-alpaca-gguf", "chinese-alpaca-pth", "chinese-alpaca-3"} <= names
    assert "wrong" not in names


@pytest.mark.parametrize(("original", "translation"), TRANSLATIONS.items())
def test_a_translation_has_the_same_blocks(original: str, translation: str) -> None:
    texts = [
        [(block.language, block.options, block.text) for block in blocks(ROOT / page)]
        for page in (original, translation)
    ]
    assert texts[0] == texts[1]


def test_the_readme_can_be_followed(stack: LocalStack, checkout: Path) -> None:
    assert walk("README.md", checkout, stack.url) >= 3


@pytest.mark.parametrize("page", ["docs/python.md", "client/README.md"])
def test_the_python_client_does_what_its_pages_say(page: str, stack: LocalStack, walked: Path) -> None:
    with Client(stack.url) as client:
        client.delete_model("chinese-alpaca")
        assert walk(page, walked, stack.url) >= 1
        assert client.model("chinese-alpaca").kind == "huggingface"


def test_the_picture_of_the_terminal_is_what_the_commands_print(stack: LocalStack, checkout: Path) -> None:
    drawn = checkout / "terminal.svg"
    subprocess.run(
        [sys.executable, "deploy/terminal_picture.py", str(drawn)],
        cwd=ROOT, env={**os.environ, "GRAFTWERK_URL": stack.url}, check=True, timeout=240,
    )  # fmt: skip
    committed = ROOT / "docs" / "img" / "terminal.svg"
    texts = [words_of(path.read_text("utf-8")) for path in (drawn, committed)]
    assert texts[0] == texts[1]


def words_of(picture: str) -> list[str]:
    """Returns the words of a picture, without its numbers: times differ, and lines break elsewhere then."""
    shown = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", picture)).replace("&#160;", " ")
    return [word for word in shown.split() if not re.search(r"\d", word)]
