"""Requests that cannot be answered, on the resident worker: each fails alone, its neighbours' texts are the same."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.jobs.queue import JobQueue
from services.tokenizers import load_tokenizer
from tests.contract.test_worker_generate import ask, ended, outputs, queue, start_worker, volume
from tests.redis_server import until

__all__ = ["queue", "start_worker", "volume"]  # fixtures

POISON = "Z"
"""In no text that the healthy jobs read or write."""

TEMPLATE = (
    "{% for message in messages %}{% if 'REFUSE' in message.content %}{{ raise_exception('not so') }}{% endif %}"
    "{% if 'FAIL' in message.content %}{{ message.content.nothing.more }}{% endif %}"
    "{% if 'DEEP' in message.content %}{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}{% endif %}"
    "{{ message.content }}{% endfor %}"
)
DRAWN = {"temperature": 1.3, "max_new_tokens": 120, "seed": 3, "logit_bias": {"2": -100}}


@pytest.fixture(scope="module", autouse=True)
def poisoned(volume: Path) -> None:
    """The base with NaN in what one token reads, and with a chat template that refuses some conversations."""
    folder = volume / "poisoned"
    shutil.copytree(volume / "base", folder)
    (token_id,) = load_tokenizer(folder).encode(POISON, add_bos=False)[-1:]
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][token_id] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    DRAWN["logit_bias"] = {"2": -100, str(token_id): -100}


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize(
    ("request_", "code", "said"),
    [
        ({"prompt": "The capital of France is " * 1000}, "prompt_too_long", "context"),
        ({"prompt": f"The capital of {POISON}"}, "non_finite_logits", "scores"),
        ({"messages": say("REFUSE this")}, "invalid_request", "not so"),
        ({"messages": say("FAIL at this")}, "invalid_request", "chat template"),
        ({"messages": say("DEEP")}, "invalid_request", "recursion"),
        ({"prompt": "x", "template": "llama-3"}, "invalid_request", "<|start_header_id|>"),
    ],
    ids=["too long", "nan", "refusing template", "faulty template", "endless template", "absent tokens"],
)
def test_a_request_that_cannot_be_answered_fails_alone(
    queue: JobQueue, request_: dict[str, Any], code: str, said: str
) -> None:
    healthy = {"model": "poisoned", "messages": say("The capital of France is"), "sampling": DRAWN}
    (alone,) = outputs(ended(queue, ask(queue, **healthy)))
    before = ask(queue, **healthy)
    until(lambda: queue.get(before).progress is not None)
    sick = ask(queue, model="poisoned", **request_)
    after = ask(queue, **healthy)
    job = ended(queue, sick)
    assert job.error is not None
    assert job.error.code == code
    assert said in job.error.message
    assert [outputs(ended(queue, id)) for id in (before, after)] == [[alone], [alone]]
    assert alone["usage"]["completion_tokens"] == 120
