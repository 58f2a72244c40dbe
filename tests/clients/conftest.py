"""The running service with SmolLM2-135M-Instruct, and what transformers writes with that model."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from graftwerk import Client
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.clients.environments import FOLDER
from tests.clients.programs.asked import TOOLS
from tests.clients.tool_model import TEMPLATE, write_tool_model
from tests.consumers.environments import smollm2
from tests.e2e.product import local_stack

HERE = Path(__file__).parent
MODEL, GGUF_MODEL, TOOL_MODEL = "smollm2", "smollm2-gguf", "smollm2-tools"
QUESTION = "What is the capital of France?"
BEGUN = "The capital of France is"
NEW_TOKENS = 24


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allows sockets and much time: agents read long prompts on a CPU."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.enable_socket)
            item.add_marker(pytest.mark.timeout(3600))


@dataclass(frozen=True, slots=True)
class Service:
    """Address of the service, and the folder of its model."""

    url: str
    folder: Path

    def last_jobs(self, count: int) -> list[dict[str, Any]]:
        """Returns the generate jobs that were submitted last, the newest first."""
        found = httpx.get(f"{self.url}/api/jobs", params={"kind": "generate", "limit": count}, timeout=30)
        jobs: list[dict[str, Any]] = found.raise_for_status().json()["jobs"]
        return jobs


@dataclass(frozen=True, slots=True)
class Reference:
    """Greedy texts of transformers: the answer to the question, the rest of a begun one; and the scores of a text's tokens.

    `with_tools` gives the answer of the model that takes tools, and the number of the prompt's tokens.
    """

    answer: str
    rest: str
    scores: list[float]
    with_tools: Callable[[list[Any]], tuple[str, int]]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on a free port, with the model as GGUF, converted from that, and with a template that takes tools."""
    data = tmp_path_factory.mktemp("data")
    with local_stack(data) as stack:
        source = stack.models_dir / GGUF_MODEL
        source.mkdir(parents=True)
        shutil.copy(smollm2(FOLDER), source)
        with Client(stack.url) as client:
            job = client.convert(source=source.name, target=MODEL, dtype="float32").wait()
            assert job.status == "succeeded", job.error
        write_tool_model(stack.models_dir / MODEL, stack.models_dir / TOOL_MODEL)
        yield Service(stack.url, stack.models_dir / MODEL)


@pytest.fixture(scope="session")
def reference(service: Service) -> Reference:
    """Texts and scores by transformers with the same files."""
    tokenizer: Any = AutoTokenizer.from_pretrained(service.folder)
    model: Any = AutoModelForCausalLM.from_pretrained(service.folder, dtype=torch.float32)

    def answered(messages: list[Any], **how: Any) -> tuple[str, int]:
        inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True, **how)
        output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=1.0)
        read = inputs["input_ids"].shape[1]
        return tokenizer.decode(output[0, read:], skip_special_tokens=True), read

    def generated(messages: list[Any], **how: bool) -> str:
        return answered(messages, **how)[0]

    def with_tools(messages: list[Any]) -> tuple[str, int]:
        return answered(messages, tools=TOOLS, chat_template=TEMPLATE, add_generation_prompt=True)

    asked = [{"role": "user", "content": QUESTION}]
    ids = tokenizer(f"{BEGUN} Paris", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(ids).logits[0].log_softmax(-1)
    return Reference(
        answer=generated(asked, add_generation_prompt=True),
        rest=generated([*asked, {"role": "assistant", "content": BEGUN}], continue_final_message=True),
        scores=logits[range(len(ids[0]) - 1), ids[0, 1:]].tolist(),
        with_tools=with_tools,
    )


def output_of(
    command: Sequence[str | Path], *, home: Path, variables: Mapping[str, str] | None = None
) -> str:
    """Returns the standard output of a client's program, which has nothing of this process's environment but the path."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1", **(variables or {})}
    done = subprocess.run(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=3000, check=False, env=environment, cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
