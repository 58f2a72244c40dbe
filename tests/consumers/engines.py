"""llama.cpp and vLLM as child processes of their own environments."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.consumers.environments import python_of

HERE = Path(__file__).parent


@contextmanager
def llama_cpp(model: Path, *adapters: Path) -> Iterator[httpx.Client]:
    """Serves a GGUF model and its adapters with llama.cpp's own server, and yields a client of it."""
    command = [python_of("llama.cpp"), HERE / "llama_cpp_child.py", model, *adapters]
    with subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdin and child.stdout and child.stderr
        address = child.stdout.readline().strip()
        assert address, child.stderr.read()
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
            yield client
        child.stdin.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:  # deleting a server may block
            child.kill()


def tokenize(client: httpx.Client, text: str, *, add_special: bool = True) -> list[int]:
    """Returns llama.cpp's tokens of a text."""
    answer = client.post(
        "/tokenize", json={"content": text, "add_special": add_special, "parse_special": False}
    )
    found: list[int] = answer.raise_for_status().json()["tokens"]
    return found


def complete(client: httpx.Client, prompt: str | list[int], tokens: int, **more: Any) -> dict[str, Any]:
    """Returns llama.cpp's greedy continuation of a prompt: `content` and `tokens`."""
    request = {
        "prompt": prompt, "n_predict": tokens, "temperature": 0, "return_tokens": True, "cache_prompt": False, **more,
    }  # fmt: skip
    found: dict[str, Any] = client.post("/completion", json=request).raise_for_status().json()
    return found


def vllm(
    model: Path, *, max_tokens: int, ignore_eos: bool = False, **asked: object
) -> list[Mapping[str, Any]]:
    """Returns vLLM's greedy outputs for `prompts` or `chats`: `prompt_token_ids`, `token_ids`, `text`."""
    request = {"model": str(model), "max_tokens": max_tokens, "ignore_eos": ignore_eos, **asked}
    answer = model.with_suffix(".vllm.json")  # its stdout is shared by the engine's processes
    done = subprocess.run(
        [str(python_of("vllm")), str(HERE / "vllm_child.py"), str(answer)],
        input=json.dumps(request), capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[Mapping[str, Any]] = json.loads(answer.read_text())
    return found
