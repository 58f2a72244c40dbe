"""Open WebUI as a process of its own environment, with nothing but the service to ask."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.clients.environments import program_of
from tests.e2e.product import free_port

START_SECONDS = 600
"""It imports torch and prepares a database first."""
STOP_SECONDS = 30
TEMPERATURE = 0.0
"""Of every chat, as an administrator's setting: by itself Open WebUI sends none, and an answer is then a random one."""


@contextmanager
def open_webui(folder: Path, service: str) -> Iterator[str]:
    """Runs `open-webui serve` with its data in a folder and yields its address; accounts are on, as by default."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {
        "PATH": f"{program_of('open-webui').parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "DATA_DIR": str(folder / "data"),
        "WEBUI_SECRET_KEY": "for this test alone",
        "OPENAI_API_BASE_URL": f"{service}/v1",
        "OPENAI_API_KEY": "none",
        "DEFAULT_MODEL_PARAMS": json.dumps({"temperature": TEMPERATURE}),
        "ENABLE_OLLAMA_API": "False",
        "OFFLINE_MODE": "True",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [program_of("open-webui", "open-webui"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    log = folder / "open-webui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, cwd=folder
        )
    try:
        _wait_until_ready(process, address, log)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{address}/health", timeout=10).is_success:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError(f"Open WebUI is not ready: {log.read_text(errors='replace')[-3000:]}")
