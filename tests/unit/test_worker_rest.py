"""A generate worker whose place the worker of another engine takes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))[
    "services"
]


def test_a_worker_does_nothing_while_another_has_the_engine() -> None:
    """It needs neither Redis nor the volume, says why, and ends with a signal."""
    command = [sys.executable, "-m", "worker", *SERVICES["worker-generate"]["command"]]
    environment = {
        **os.environ,
        "GRAFTWERK_GENERATE_ENGINE": "vllm",
        "GRAFTWERK_REDIS_URL": "redis://127.0.0.1:1/0",
    }
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        line = worker.stderr.readline()
        assert "GENERATE_ENGINE is vllm: worker-vllm generates, and this worker does nothing." in line
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0


def test_the_worker_of_vllm_has_no_other_engine() -> None:
    """With another setting of the API it ends with a message, rather than generate with the reference engine."""
    worker = SERVICES["worker-vllm"]
    assert worker["environment"]["GRAFTWERK_GENERATE_ENGINE"] == "vllm"
    assert worker["command"] == ["generate"]
    assert worker["profiles"] == ["vllm"]


def test_the_command_of_vllm_is_that_of_its_image() -> None:
    """Compose takes a variable of the image away if the file names it without a value."""
    image = (ROOT / "worker" / "Dockerfile.vllm").read_text(encoding="utf-8")
    (command,) = re.findall(r'GRAFTWERK_VLLM_COMMAND="(.+)"', image)
    settings = SERVICES["worker-vllm"]["environment"]
    assert settings["GRAFTWERK_VLLM_COMMAND"] == f"${{GRAFTWERK_VLLM_COMMAND:-{command}}}"
