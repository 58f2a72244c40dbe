"""Processes that are killed or terminated; only where they run on this machine."""

import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import MINIATURE
from tests.e2e.product import Json, LocalStack, LocalVolume, Product, is_alive, local_stack, stop
from tests.tus import BYTES, TUS, metadata


def test_a_merge_whose_worker_is_killed_is_finished_by_its_successor(
    product: Product, stack: LocalStack, slow: Json
) -> None:
    product.run(**slow, target="undisturbed")
    job = product.submit(**slow, target="disturbed")
    wait_until_half_written(product, job["id"])
    workers = [pid for pid, line in stack.descendants().items() if line.endswith("-m worker merge")]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    resumed = product.succeeded(job["id"])["result"]["resumed"]
    assert resumed["tensors"] > 0, "the tensors that the first worker wrote are reused"
    made = [stack.models_dir / name / "model.safetensors" for name in ("undisturbed", "disturbed")]
    assert made[0].read_bytes() == made[1].read_bytes()
    for name in ("undisturbed", "disturbed"):
        product.http.delete(f"/api/models/{name}")


def wait_until_half_written(product: Product, job_id: str) -> None:
    for event in product.events(job_id):
        progress = event.data.get("progress")
        if progress and progress["stage"] == "writing tensors" and progress["fraction"] > 0.3:
            return
    raise AssertionError("the merge ended before its progress was seen")


def test_the_api_holds_neither_uploads_nor_archives_in_memory(product: Product, stack: LocalStack) -> None:
    content = random.Random(7).randbytes(64_000_000)
    files = {
        "tokenizer.model": (MINIATURE / "llama" / "tokenizer.model").read_bytes(),
        "weights.dat": content,
    }
    processes = [pid for pid, line in stack.descendants().items() if "api.wsgi" in line]
    assert len(processes) >= 3, "gunicorn's master and its two workers"
    before = {pid: resident_bytes(pid, "VmRSS") for pid in processes}
    for pid in processes:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak starts over, see proc(5)
    ids = []
    for name, data in files.items():
        headers = {**TUS, "Upload-Length": str(len(data)), "Upload-Metadata": metadata(filename=name)}
        url = product.http.post("/api/uploads", headers=headers).headers["Location"]
        sent = product.http.patch(url, headers={**BYTES, "Upload-Offset": "0"}, content=data)
        assert sent.headers["Upload-Offset"] == str(len(data))
        ids.append(url.rpartition("/")[2])
    product.run(kind="import", source={"upload": ids}, target="large")
    received = 0
    with product.http.stream("GET", "/api/models/large/archive") as response:
        for block in response.iter_raw():
            received += len(block)
    assert received == int(response.headers["Content-Length"]) > len(content)
    grown = {pid: resident_bytes(pid, "VmHWM") - before[pid] for pid in processes}
    assert max(grown.values()) < 20_000_000, grown
    product.http.delete("/api/models/large")


def resident_bytes(pid: int, field: str) -> int:
    """A process's resident memory at the moment (`VmRSS`) or at its peak (`VmHWM`)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def test_sigterm_ends_every_process_and_leaves_no_half_model(tmp_path: Path) -> None:
    with local_stack(tmp_path / "data") as stack:
        product = Product(stack.url, LocalVolume(stack.models_dir))
        product.run(
            kind="import",
            source={"path": product.volume.put_incoming(MINIATURE / "llama", "llama")},
            target="llama",
        )
        product.http.close()
        started = stack.descendants()
        assert len(started) >= 5
        assert stop(stack) == 0
        assert [line for pid, line in started.items() if is_alive(pid)] == []
    left = {path.split("/")[0] for path in product.volume.files()}
    assert {name for name in left if not name.startswith(".")} == {"llama"}


def test_the_commands_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    readme = (MINIATURE.parents[1] / "README.md").read_text(encoding="utf-8")
    commands = [
        shlex.split(line.removeprefix(".venv/bin/graftwerk "))
        for line in readme.splitlines()
        if line.startswith(".venv/bin/graftwerk ")
    ]
    assert [command[0] for command in commands] == ["import"] * 3 + ["convert", "merge", "generate"]
    with local_stack(tmp_path / "data") as stack:
        volume = LocalVolume(stack.models_dir)
        for name in ("llama", "chinese-llama-lora.zip", "chinese-alpaca-lora.zip"):
            volume.put_incoming(MINIATURE / name, name)
        for command in commands:
            done = subprocess.run(
                [sys.executable, "-m", "graftwerk", *command], env={**os.environ, "GRAFTWERK_URL": stack.url},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "中国的首都是北京。"
