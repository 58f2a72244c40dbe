"""The requests on the pages about the HTTP API are sent, with curl and in Python, to a service that has the models of the pages."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from graftwerk import Client

from tests.doc_snippets import ROOT, Block, blocks
from tests.e2e.plain_adapter import write_plain_adapter
from tests.e2e.product import LocalStack, local_stack

MINIATURE = ROOT / "examples" / "miniature"
PAGES = ["docs/api.md", "docs/openai.md", "docs/get-models-in.md", "docs/jobs/convert.md", "docs/cli.md"]
NOT_SENT = {
    r"/api/hub/|\"hub\":|hub:": "needs a Hub: tests/e2e/test_hub.py has one",
    r"name-q4": "a GGUF file from the Hub",
    r"<id>": "ids of uploads: tests/e2e/test_uploads.py",
}
"""Blocks that are only parsed (`tests/unit/test_docs_snippets.py`), with the reason."""

PRELUDE = "from graftwerk import Client, TokenPiece\nimport os\nurl = os.environ['URL']\n"
CODE = "\\n%{http_code} %{url}\\n"
EXPECTED = {"/cancel": "409"}
"""Statuses of requests that need another state than the pages describe: the job of the tests has ended."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A service of these tests alone."""
    with local_stack(tmp_path_factory.mktemp("requests") / "data") as running:
        incoming = running.models_dir / "incoming"
        incoming.mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(MINIATURE / "llama"), str(incoming)], check=True)
        subprocess.run(["cp", str(MINIATURE / "chinese-llama-lora.zip"), str(incoming)], check=True)
        (incoming / "questions.txt").write_text("What is the capital of France?\n", encoding="utf-8")
        yield running


@pytest.fixture
def models(stack: LocalStack) -> Client:
    """A client of the service, whose volume has the models that the pages read."""
    client = Client(stack.url)
    for job in client.jobs():
        if not job.ended:
            client.job(job.id).wait(timeout=60)
    there = {model.name for model in client.models()}
    for name, adapter in (("zh", "chinese-llama-lora"), ("alpaca", "chinese-alpaca-lora")):
        if name not in there:
            client.push(MINIATURE / f"{adapter}.zip", name).wait()
    if "original" not in there:
        client.push(MINIATURE / "llama", "original").wait()
    for name in {"llama-hf", "llama-7b", "llama-13b-hf"} - there:
        client.convert(source="original", target=name).wait()
    for name in {"merged", "chinese-alpaca-7b"} - there:
        client.merge(base="llama-hf", adapters=["zh", "alpaca"], target=name).wait()
    return client


def made(block: Block) -> set[str]:
    """Returns the names of the models that a block makes."""
    return set(re.findall(r"\"?target\"?[:=] ?\"([^\"]+)\"", block.text))


def sent() -> Iterator[Block]:
    """Blocks with requests that are sent."""
    for page in PAGES:
        for block in blocks(ROOT / page):
            is_request = block.language == "python" or "curl " in block.text
            if is_request and not any(re.search(pattern, block.text) for pattern in NOT_SENT):
                yield block


BLOCKS = [pytest.param(block, id=block.place) for block in sent()]


def test_there_are_blocks_and_each_exception_is_needed() -> None:
    texts = [block.text for page in PAGES for block in blocks(ROOT / page)]
    assert all(any(re.search(pattern, text) for text in texts) for pattern in NOT_SENT)
    assert len(BLOCKS) > 15


def identifier(client: Client, block: Block, folder: Path) -> str:
    """Returns the id that `$ID` stands for: of an upload, or of an ended job with a file of prompts."""
    if "/api/uploads" in block.text:
        (upload,) = client.upload(folder / "empty", "empty") if (folder / "empty").exists() else ("",)
        return upload
    prompts = {"kind": "generate", "model": "llama-hf", "prompts_file": "incoming/questions.txt"}
    return client.submit({**prompts, "sampling": {"max_new_tokens": 2}}).wait().id


@pytest.mark.parametrize("block", BLOCKS)
def test_a_documented_request_is_answered(
    block: Block, stack: LocalStack, models: Client, tmp_path: Path
) -> None:
    write_plain_adapter(tmp_path / "my-model", 3)
    subprocess.run(
        ["cp", str(MINIATURE / "chinese-llama-lora.zip"), str(tmp_path / "my-adapter.zip")], check=True
    )
    subprocess.run(
        ["cp", str(tmp_path / "my-model" / "adapter_model.safetensors"), str(tmp_path)], check=True
    )
    with models as client:
        text = block.text.replace("http://127.0.0.1:8000", stack.url)
        for name in made(block) & {model.name for model in client.models()}:
            client.delete_model(name)
        environment = {
            **os.environ,
            "URL": stack.url,
            "GRAFTWERK_URL": stack.url,
            "ID": identifier(client, block, tmp_path),
        }
        if block.language == "python":
            command = [sys.executable, "-c", PRELUDE + text]
        else:
            command = ["bash", "-c", curl_with_status(text)]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
    if block.language == "python":
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        check_statuses(done.stdout, done.stderr)


def curl_with_status(text: str) -> str:
    """Returns shell text whose curl commands print the status; streams without an end are left after some seconds."""
    text = text.replace("URL=http", ": http")
    return re.sub(r"\bcurl ", f"curl -sS --max-time 5 -w '{CODE}' ", text)


def check_statuses(output: str, errors: str) -> None:
    """Checks that each request was answered as documented."""
    found = re.findall(r"^(\d{3}) (\S+)$", output, re.MULTILINE)
    assert found, output + errors
    for status, url in found:
        wanted = next((code for part, code in EXPECTED.items() if url.endswith(part)), None)
        assert status == wanted if wanted else status.startswith("2"), (status, url, output)
