"""Models of a hub through the running service; only where its processes run on this machine."""

import os
import signal
import subprocess
import sys

import pytest

from tests.e2e.conftest import GREEDY, MINIATURE
from tests.e2e.product import LocalStack, Product
from tests.hub_server import HubServer, Repo

CHECKPOINT = "consolidated.00.pth"


@pytest.fixture(scope="module")
def repository(hub: HubServer) -> str:
    """The id of a gated repository with the miniature and files that no import needs."""
    paths = [MINIATURE / "llama/7B" / name for name in (CHECKPOINT, "params.json")]
    files = {path.name: path.read_bytes() for path in (*paths, MINIATURE / "llama/tokenizer.model")}
    hub.repos["someone/miniature"] = Repo(gated=True)
    hub.repos["someone/miniature"].commit({**files, "README.md": b"# Miniature", "notes.pdf": b"%PDF"})
    return "someone/miniature"


def test_the_command_imports_a_gated_model_which_then_generates(
    product: Product, stack: LocalStack, hub: HubServer, repository: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graftwerk", "import", f"hub:{repository}", "--json"],
        env={**os.environ, "GRAFTWERK_URL": stack.url}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = product.get("/api/models/miniature")
    assert model["kind"] == "original"
    assert not model["problems"]
    assert {file["path"] for file in model["files"]} == {
        CHECKPOINT, "params.json", "tokenizer.model", "README.md", "manifest.json",
    }  # fmt: skip
    assert model["lineage"]["inputs"][0]["commit"] == hub.repos[repository].branches["main"]
    product.run(kind="convert", source="miniature", target="miniature-hf")
    job = product.run(kind="generate", model="miniature-hf", prompt="The capital", sampling=GREEDY)
    assert job["result"]["outputs"][0]["text"]


def test_an_import_whose_worker_is_killed_continues_within_the_file(
    product: Product, stack: LocalStack, hub: HubServer, repository: str
) -> None:
    hub.heard.clear()
    hub.stalls = [700_000]
    job = product.submit(kind="import", source={"hub": repository, "revision": "main"}, target="killed")
    for event in product.events(job["id"]):
        progress = event.data.get("progress") or {}
        if progress.get("stage") == "downloading" and progress["done"] > 500_000:
            assert progress["unit"] == "bytes"
            break
    workers = [pid for pid, line in stack.descendants().items() if line.endswith("-m worker convert")]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    assert product.succeeded(job["id"])["result"]["model"]["kind"] == "original"
    begun = [int(found.removeprefix("bytes=").removesuffix("-")) for found in hub.downloads()]
    assert max(begun) > 500_000
    assert (stack.models_dir / "killed" / CHECKPOINT).read_bytes() == (
        MINIATURE / "llama/7B" / CHECKPOINT
    ).read_bytes()


def test_the_token_is_written_nowhere(
    product: Product, stack: LocalStack, hub: HubServer, repository: str
) -> None:
    job = product.run(kind="import", source={"hub": repository}, target="hub-once-more")
    answers = [
        product.http.get(path).text for path in (f"/api/jobs/{job['id']}", f"/api/jobs/{job['id']}/log")
    ]
    answers += [
        product.http.get(path).text for path in ("/api/system", "/api/models/hub-once-more", "/openapi.json")
    ]
    product.refusal(404, "hub_not_found", kind="import", source={"hub": "someone/gone"}, target="gone")
    assert not [text for text in answers if hub.token in text or "secretSignature" in text]
    files = [path for path in stack.models_dir.parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    for path in files:
        assert hub.token.encode() not in path.read_bytes(), path
        assert b"secretSignature" not in path.read_bytes(), path
