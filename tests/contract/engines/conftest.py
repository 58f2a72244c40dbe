"""A volume with a base and adapters, and vLLM as a small program that computes its tokens from the prompt."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.reference.huggingface_model import save_llama
from tests.reference.peft_merge import make_adapter

FAKE = Path(__file__).parents[2] / "fake_vllm.py"
FAKE_COMMAND = f"{sys.executable} {FAKE} serve"
ROWS = 101
"""Tokens of the base."""


class FakeVllm:
    """Behaviour of the program for the model `base`, and the requests that it got."""

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.behave()

    @property
    def _heard(self) -> Path:
        return self.volume.parent / "heard.jsonl"

    def behave(self, **behaviour: Any) -> None:
        """Sets the behaviour of servers that start from now on."""
        content = json.dumps({"heard": str(self._heard), **behaviour})
        (self.volume / "base.json").write_text(content, encoding="utf-8")

    def heard(self, path: str) -> list[Any]:
        """Returns the bodies of the requests to an endpoint; "start" has what a server found at its start."""
        if not self._heard.is_file():
            return []
        lines = map(json.loads, self._heard.read_text(encoding="utf-8").splitlines())
        return [value for found, value in lines if found == path]

    @property
    def pids(self) -> list[int]:
        """Ids of the last server's processes: itself and the one that outlives it."""
        found: list[int] = self.heard("start")[-1]["pids"]
        return found


@pytest.fixture
def fake(tmp_path: Path) -> FakeVllm:
    """The program, on a volume with a base of 101 tokens and two adapters, the second one with alpha 16."""
    volume = tmp_path / "volume"
    volume.mkdir()
    save_llama(volume / "base")
    make_adapter(volume / "a", seed=3, lora_alpha=5)
    make_adapter(volume / "b", seed=4)
    return FakeVllm(volume)


def tokens_after(prompt: Sequence[int], count: int, shift: int = 0) -> list[int]:
    """Returns the tokens of the program's rule, written a second time."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(3 + (7 * sum(ids) + len(ids) + shift) % (ROWS - 3))
    return ids[len(prompt) :]
