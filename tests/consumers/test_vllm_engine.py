"""The engine vLLM with a real vLLM: tokens, adapters, forms, and what is left when processes are killed."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from services.tokenizers import complete_tokenizer, load_tokenizer
from tests.chaos.references import TOOL_TEMPLATE
from tests.consumers.environments import python_of
from tests.consumers.test_vllm import PROMPTS, greedy, save_base
from tests.contract.engines.processes import all_end, descendants, is_alive
from tests.contract.engines.vllm_worker import VllmWorker
from tests.e2e.product import command_line
from tests.reference.families import save_tiny_adapter

ROOT = Path(__file__).parents[2]
COMMAND = f"{python_of('vllm')} -m vllm.entrypoints.openai.api_server --enforce-eager"
SETTINGS = {
    "vllm_command": COMMAND,
    "vllm_cache_bytes": 2**29,
    "generate_slots": 4,
    "vllm_start_seconds": 300,
}
GREEDY = {"temperature": 0, "repetition_penalty": 1, "max_new_tokens": 16, "logit_bias": {"2": -100}}
SECONDS = 300.0
RECORD = {
    "type": "object",
    "properties": {"name": {"enum": ["x", "y"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WILD = {"temperature": 1.5, "seed": 3, "max_new_tokens": 80}


class Real:
    """A volume with a base and an adapter, their models in transformers, and a worker with a real vLLM."""

    def __init__(self, volume: Path) -> None:
        self.volume = volume
        self.base = save_base(volume / "base")
        complete_tokenizer(volume / "base")
        (volume / "base" / "chat_template.jinja").write_text(TOOL_TEMPLATE, encoding="utf-8")
        save_tiny_adapter(volume / "adapter", self.base, lora_alpha=4)
        self.adapted: PreTrainedModel = PeftModel.from_pretrained(
            copy.deepcopy(self.base), volume / "adapter"
        ).merge_and_unload()
        self.tokenizer = load_tokenizer(volume / "base")
        self.worker = VllmWorker(volume, **SETTINGS)

    def result(self, **request: Any) -> Any:
        job = self.ended(**request)
        assert job.result is not None, job.error
        return job.result

    def ended(self, **request: Any) -> Any:
        """Returns a job that has ended."""
        body = {"kind": "generate", "model": "base", "return_token_ids": True, "sampling": GREEDY, **request}
        job = self.worker.add(**body)
        self.worker.run(job, seconds=SECONDS)
        return job

    def expected(self, model: PreTrainedModel, tokens: int = 16) -> list[list[int]]:
        """Returns transformers' greedy tokens, without the end of text."""
        model.generation_config.eos_token_id = None
        return [greedy(model, self.tokenizer.encode(prompt), tokens) for prompt in PROMPTS]

    @property
    def servers(self) -> list[list[int]]:
        """Ids of the processes of each server, its keeper first; the server that was started first comes first."""
        engines: list[Any] = [model.engine for model in self.worker.models.models]
        keepers = sorted({engine.server.pid for engine in engines})
        return [[pid, *descendants(pid)] for pid in keepers]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("tmp")))
        found = Real(tmp_path_factory.mktemp("volume"))
        yield found
        found.worker.close()


def tokens_of(result: Any) -> list[list[int]]:
    return [output.token_ids for output in result.outputs]


@pytest.mark.timeout(600)
def test_four_streams_have_the_greedy_tokens_of_transformers(real: Real) -> None:
    result = real.result(prompts=PROMPTS)
    assert tokens_of(result) == real.expected(real.base)
    assert (result.engine, result.adapters) == ("vllm", None)


def test_an_unmerged_adapter_has_the_greedy_tokens_of_the_merge_by_peft(real: Real) -> None:
    result = real.result(prompts=PROMPTS, adapters=["adapter"])
    assert result.adapters == "unmerged"
    assert tokens_of(result) == real.expected(real.adapted)
    assert tokens_of(result) != real.expected(real.base)


def test_base_and_adapter_in_one_batch(real: Real) -> None:
    jobs = [
        real.worker.add(
            kind="generate",
            model="base",
            prompts=PROMPTS,
            return_token_ids=True,
            sampling=GREEDY,
            adapters=adapters,
        )
        for adapters in ([], ["adapter"])
    ]
    real.worker.run(*jobs, seconds=SECONDS)
    for job, model in zip(jobs, (real.base, real.adapted), strict=True):
        assert tokens_of(job.result) == real.expected(model)


def test_log_probabilities_are_those_of_transformers(real: Real) -> None:
    ids = real.tokenizer.encode(PROMPTS[0])
    result = real.result(
        prompt_token_ids=ids, score_prompt=True, sampling={**GREEDY, "max_new_tokens": 1, "logprobs": 3}
    )
    (output,) = result.outputs
    with torch.no_grad():
        expected = real.base(torch.tensor([ids])).logits[0].log_softmax(-1)
    assert output.prompt_logprobs[0].logprob is None
    for position, item in enumerate(output.prompt_logprobs[1:]):
        assert item.logprob == pytest.approx(float(expected[position, ids[position + 1]]), abs=1e-4)
        assert [top.token_id for top in item.top] == expected[position].topk(3).indices.tolist()
    assert output.logprobs[0].top[0].logprob == pytest.approx(float(expected[-1].max()), abs=1e-4)


def test_the_same_seed_gives_the_same_tokens(real: Real) -> None:
    sampling = {**GREEDY, "temperature": 1, "seed": 7, "n": 2}
    first, second = (tokens_of(real.result(prompt="The sky", sampling=sampling)) for _ in range(2))
    assert first == second
    assert first[0] != first[1]


def test_a_stop_string_ends_the_output(real: Real) -> None:
    (whole,) = real.result(prompt=PROMPTS[0]).outputs
    assert whole.token_ids == real.expected(real.base)[0]
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 2]
    (output,) = real.result(prompt=PROMPTS[0], sampling={**GREEDY, "stop": [stop]}).outputs
    assert output.text == whole.text[: whole.text.index(stop)]
    assert (output.finish_reason, output.stop_string) == ("stop", stop)


def test_outputs_follow_a_schema(real: Real) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": RECORD}}
    for output in real.result(prompts=PROMPTS, response_format=form, sampling=WILD).outputs:
        check_record(json.loads(output.text))


def test_outputs_follow_a_regular_expression(real: Real) -> None:
    for output in real.result(
        prompts=PROMPTS, guided_regex="[0-9]{3}-(ab|cd)+e", sampling={**WILD, "max_new_tokens": 200}
    ).outputs:
        assert output.finish_reason == "stop"
        assert re.fullmatch("[0-9]{3}-(ab|cd)+e", output.text)


def test_a_required_call_has_arguments_of_its_schema(real: Real) -> None:
    tool = {"type": "function", "function": {"name": "remember", "parameters": RECORD}}
    messages = [{"role": "user", "content": "Remember x."}]
    (output,) = real.result(messages=messages, tools=[tool], tool_choice="required", sampling=WILD).outputs
    assert (output.finish_reason, len(output.tool_calls)) == ("tool_calls", 1)
    assert output.tool_calls[0].name == "remember"
    check_record(json.loads(output.tool_calls[0].arguments))


def check_record(found: Any) -> None:
    """Checks a value against `RECORD`."""
    assert found.keys() == {"name", "age"}
    assert found["name"] in ("x", "y")
    assert 0 <= found["age"] <= 99


@pytest.mark.parametrize(
    "request_part",
    [{"sampling": {"num_beams": 2}}, {"sampling": {"typical_p": 0.5}}, {"quantization": "8bit"}, {"rope_alpha": 2}],
    ids=json.dumps,
)  # fmt: skip
def test_what_vllm_does_not_have_is_refused_by_name(real: Real, request_part: dict[str, Any]) -> None:
    error = real.ended(prompt="x", **request_part).error
    name = next(iter(request_part.get("sampling", request_part)))
    assert error.code == "unsupported_option"
    assert name in error.message


@pytest.mark.timeout(600)
@pytest.mark.parametrize("words", ["vllm.entrypoints", "EngineCore"])
def test_a_killed_process_leaves_no_other_and_is_replaced(real: Real, words: str) -> None:
    """The server's child holds the model, and survives a server that is killed."""
    real.result(prompt="x")
    ((keeper, *others),) = real.servers
    assert len(others) >= 3
    killed = next(pid for pid in others if words in command_line(pid))
    long = {**GREEDY, "max_new_tokens": 460}
    job = real.worker.add(kind="generate", model="base", prompts=PROMPTS, sampling=long)
    real.worker.run_until(lambda: any(model.engine.free_slots == 0 for model in real.worker.models.models))
    os.kill(killed, signal.SIGKILL)
    real.worker.run(job)
    assert job.error is not None
    assert job.error.transient
    assert job.error.message.startswith("vLLM ")
    assert all_end([keeper, *others])
    assert tokens_of(real.result(prompts=PROMPTS)) == real.expected(real.base)


@pytest.mark.timeout(600)
def test_a_merged_copy_has_a_server_of_its_own(real: Real) -> None:
    """Its folder is removed once the server has it."""
    result = real.result(prompts=PROMPTS, adapters=["adapter"], exact=True)
    assert result.adapters == "merged"
    assert tokens_of(result) == real.expected(real.adapted)
    assert len(real.servers) == 2
    assert [*(real.volume / ".staging").iterdir()] == []


def test_servers_without_jobs_are_stopped_and_leave_nothing(real: Real) -> None:
    pids = [pid for server in real.servers for pid in server]
    sockets = [*Path(tempfile.gettempdir()).rglob("*.sock")]
    assert len(sockets) == len(real.servers) > 0
    time.sleep(0.02)
    real.worker.models.evict_idle(0.01)
    assert real.worker.models.models == []
    assert all_end(pids)
    assert [*Path(tempfile.gettempdir()).iterdir()] == []


@pytest.mark.timeout(600)
def test_a_killed_worker_leaves_no_process(real: Real, tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from services.engines.vllm import VllmOptions\n"
        "from services.engines.vllm_server import VllmServer\n"
        f"options = VllmOptions(command={COMMAND!r}, dtype='float32', context=128, cache_bytes=2**28)\n"
        f"server = VllmServer('base', Path({str(real.volume / 'base')!r}), options)\n"
        "while not server.is_ready: server.check(); time.sleep(0.1)\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n",
        encoding="utf-8",
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        keeper = int(worker.stdout.readline())
        pids = [keeper, *descendants(keeper)]
        assert len(pids) >= 4
        assert all(map(is_alive, pids))
        time.sleep(0.1)
        worker.kill()
    assert all_end(pids)
