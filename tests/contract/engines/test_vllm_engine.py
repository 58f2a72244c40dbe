"""The vLLM engine and its server, with a program whose tokens are computed by hand here."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from os import kill
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from services.engines.output import ServedAdapter
from services.engines.vllm import VllmOptions
from services.engines.vllm_server import VllmServer
from services.errors import GraftwerkError, InvalidSettings, NotReady, PromptTooLong, UnsupportedOption
from services.generate import (
    Completion,
    Event,
    GenerationRequest,
    OutputFailed,
    OutputFinished,
    TokenGenerated,
    read_served_model,
)
from services.grammar import grammar_of
from services.sampling import Sampling
from tests.contract.engines.conftest import FAKE_COMMAND, FakeVllm, tokens_after
from tests.contract.engines.processes import all_end, is_alive
from worker.inference.vllm_engine import VllmEngine

END = 2
PROMPT = [1, 40, 41]
PLAIN = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=6)
MakeEngine = Callable[..., VllmEngine]


@pytest.fixture
def servers() -> Iterator[list[VllmServer]]:
    started: list[VllmServer] = []
    yield started
    for server in started:
        server.stop()


@pytest.fixture
def make(fake: FakeVllm, servers: list[VllmServer]) -> MakeEngine:
    """Makes engines on one server of the base, which starts with the first of them."""
    folder, wakeup = fake.volume / "base", threading.Event()
    loaded = read_served_model(folder, context=0, size_bytes=1, device_name="cpu", dtype_name="float32")

    def make_engine(adapter: str | None = None, **options: object) -> VllmEngine:
        if not servers:
            command = VllmOptions(command=FAKE_COMMAND, context=loaded.context_length, **options)  # type: ignore[arg-type]
            servers.append(VllmServer("base", folder, command))
        served = None if adapter is None else ServedAdapter(f"{adapter}@1", fake.volume / adapter)
        return VllmEngine(
            loaded=loaded,
            server=servers[0],
            adapter=served,
            slots=4,
            notify=wakeup.set,
            on_close=lambda: None,
        )

    return make_engine


def events_of(engine: VllmEngine, *requests: GenerationRequest, seconds: float = 20) -> list[Event]:
    """Returns the events of all requests once every output has ended."""
    deadline = time.monotonic() + seconds
    while engine.stage is not None:
        engine.step()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    events: list[Event] = []
    missing = sum(request.sampling.n for request in requests)
    for request in requests:
        engine.submit(request)
    while missing > sum(not isinstance(event, TokenGenerated) for event in events):
        assert time.monotonic() < deadline, events
        events += engine.step()
        time.sleep(0.005)
    return events


def outputs_of(engine: VllmEngine, *requests: GenerationRequest) -> list[Completion]:
    """Returns the outputs in the order of requests and indices."""
    found = [event for event in events_of(engine, *requests) if not isinstance(event, TokenGenerated)]
    assert all(isinstance(event, OutputFinished) for event in found), found
    order = [request.id for request in requests]
    found.sort(key=lambda event: (order.index(event.request_id), event.index))
    return [event.output for event in found if isinstance(event, OutputFinished)]


def error_of(engine: VllmEngine, request: GenerationRequest) -> GraftwerkError:
    (event,) = (event for event in events_of(engine, request) if isinstance(event, OutputFailed))
    return event.error


# ---- outputs ------------------------------------------------------------------------------------------


def test_tokens_and_text_are_those_that_the_server_sends(make: MakeEngine) -> None:
    engine = make()
    request = GenerationRequest(PROMPT, PLAIN)
    events = events_of(engine, request)
    (finished,) = (event.output for event in events if isinstance(event, OutputFinished))
    assert finished.token_ids == tokens_after(PROMPT, 6)
    assert (finished.finish_reason, finished.prompt_tokens) == ("length", 3)
    assert finished.text == engine.loaded.tokenizer.decode(finished.token_ids)
    assert "".join(event.text for event in events if isinstance(event, TokenGenerated)) == finished.text
    assert engine.free_slots == 4


def test_many_prompts_and_outputs_at_once(make: MakeEngine) -> None:
    prompts = [[1, 30 + number] for number in range(6)]
    requests = [GenerationRequest(prompt, PLAIN.model_copy(update={"n": 2})) for prompt in prompts]
    outputs = outputs_of(make(), *requests)
    assert [output.token_ids for output in outputs] == [tokens_after(p, 6) for p in prompts for _ in range(2)]
    assert [output.index for output in outputs] == [0, 1] * 6


def test_every_output_has_a_seed_of_its_own(make: MakeEngine, fake: FakeVllm) -> None:
    sampling = PLAIN.model_copy(update={"n": 2, "seed": 5, "temperature": 0.7})
    outputs = outputs_of(make(), GenerationRequest(PROMPT, sampling))
    assert {body["seed"] for body in fake.heard("/v1/completions")} == {output.seed for output in outputs}
    assert outputs[0].seed == 5
    assert outputs[1].seed != 5


def test_settings_are_sent_under_vllms_names(make: MakeEngine, fake: FakeVllm) -> None:
    sampling = Sampling(
        temperature=0.5, top_p=0.8, top_k=0, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=0.4, logit_bias={7: 2.0}, max_new_tokens=3, min_new_tokens=2,
    )  # fmt: skip
    outputs_of(make(), GenerationRequest(PROMPT, sampling, stop_token_ids=frozenset({9})))
    (body,) = fake.heard("/v1/completions")
    expected = {
        "model": "model", "prompt": PROMPT, "max_tokens": 3, "temperature": 0.5, "top_p": 0.8, "top_k": -1, "min_p": 0.1,
        "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.4, "logit_bias": {"7": 2.0},
        "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [END, 9],
    }  # fmt: skip
    assert {name: body[name] for name in expected} == expected
    assert "logprobs" not in body


@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"do_sample": False}, {"top_p": 0}])
def test_greedy_outputs_have_temperature_0(
    make: MakeEngine, fake: FakeVllm, greedy: dict[str, object]
) -> None:
    outputs_of(make(), GenerationRequest(PROMPT, Sampling(max_new_tokens=1, **greedy)))  # type: ignore[arg-type]
    (body,) = fake.heard("/v1/completions")
    assert (body["temperature"], body["top_p"]) == (0, 0.9 if greedy.get("top_p") is None else 1) or body[
        "top_p"
    ] == 1


@pytest.mark.parametrize("option", [{"num_beams": 2}, {"typical_p": 0.5}, {"no_repeat_ngram_size": 2}])
def test_what_vllm_does_not_have_is_refused_by_name(make: MakeEngine, option: dict[str, object]) -> None:
    engine = make()
    (name,) = option
    with pytest.raises(UnsupportedOption, match=f"vLLM has no {name}; the request sets it to"):
        engine.submit(GenerationRequest(PROMPT, PLAIN.model_copy(update=option)))
    assert engine.free_slots in (0, 4)


def test_a_prompt_longer_than_the_context_is_refused(make: MakeEngine) -> None:
    engine = make()
    length = engine.loaded.context_length
    with pytest.raises(PromptTooLong, match=f"the model's context is {length}"):
        engine.submit(GenerationRequest([1] * length, PLAIN))


def test_the_output_ends_at_a_stop_token_and_at_a_stop_string(make: MakeEngine) -> None:
    engine, new = make(), tokens_after(PROMPT, 6)
    (output,) = outputs_of(engine, GenerationRequest(PROMPT, PLAIN, stop_token_ids=frozenset({new[2]})))
    assert (output.token_ids, output.finish_reason) == (new[:3], "stop")
    text = engine.loaded.tokenizer.decode(new)
    (output,) = outputs_of(engine, GenerationRequest(PROMPT, PLAIN, stop=(text[2:4],)))
    assert (output.text, output.finish_reason) == (text[:2], "stop")


def test_log_probabilities_of_new_tokens_and_of_the_prompt(make: MakeEngine) -> None:
    sampling = PLAIN.model_copy(update={"logprobs": 2, "max_new_tokens": 2})
    (output,) = outputs_of(make(), GenerationRequest(PROMPT, sampling, prompt_logprobs=2))
    new = tokens_after(PROMPT, 2)
    assert output.logprobs is not None
    assert output.prompt_logprobs is not None
    assert [(item.token_id, item.logprob) for item in output.logprobs] == [(id, -id / 100) for id in new]
    assert [[top.token_id for top in item.top] for item in output.logprobs] == [[1, 2], [1, 2]]
    assert [(item.token_id, item.logprob) for item in output.prompt_logprobs] == [
        (1, None),
        (40, -0.4),
        (41, -0.41),
    ]


def test_a_prompt_is_scored_without_an_output(make: MakeEngine, fake: FakeVllm) -> None:
    sampling = PLAIN.model_copy(update={"max_new_tokens": 0})
    (output,) = outputs_of(make(), GenerationRequest(PROMPT, sampling, prompt_logprobs=0))
    assert (output.token_ids, output.text, output.finish_reason) == ([], "", "length")
    assert [item.token_id for item in output.prompt_logprobs or []] == PROMPT
    assert fake.heard("/v1/completions")[0]["max_tokens"] == 1


def test_nothing_is_asked_for_an_output_without_tokens(make: MakeEngine, fake: FakeVllm) -> None:
    (output,) = outputs_of(make(), GenerationRequest(PROMPT, PLAIN.model_copy(update={"max_new_tokens": 0})))
    assert (output.token_ids, output.finish_reason) == ([], "length")
    assert fake.heard("/v1/completions") == []


def test_a_token_beyond_the_grammar_fails_its_output_alone(make: MakeEngine, fake: FakeVllm) -> None:
    fake.behave(stray=60)
    engine = make()
    grammar = grammar_of(None, "[0-9]")
    guided, plain = GenerationRequest(PROMPT, PLAIN, grammar=grammar), GenerationRequest([1, 5], PLAIN)
    events = events_of(engine, guided, plain)
    failed = [event for event in events if isinstance(event, OutputFailed)]
    assert [(event.request_id, type(event.error)) for event in failed] == [(guided.id, InvalidSettings)]
    sent = {tuple(body["prompt"]): body.get("structured_outputs") for body in fake.heard("/v1/completions")}
    assert grammar is not None
    assert sent == {tuple(PROMPT): {"grammar": grammar.text()}, (1, 5): None}


def test_a_canceled_output_ends_with_its_text_so_far(make: MakeEngine, fake: FakeVllm) -> None:
    fake.behave(token_seconds=0.05)
    engine = make()
    events_of(engine)
    request = GenerationRequest(PROMPT, PLAIN.model_copy(update={"max_new_tokens": 50}))
    engine.submit(request)
    events: list[Event] = []
    while len(events) < 2:
        events += engine.step()
    engine.cancel(request.id)
    events += engine.step()
    last = events[-1]
    assert isinstance(last, OutputFinished)
    assert last.output.finish_reason == "canceled"
    assert last.output.token_ids == tokens_after(PROMPT, 50)[: len(last.output.token_ids)]
    assert engine.free_slots == 4


# ---- adapters -----------------------------------------------------------------------------------------


def test_adapters_are_loaded_once_and_answer_next_to_the_base(make: MakeEngine, fake: FakeVllm) -> None:
    base, a, b = make(), make("a"), make("b")
    for engine, shift in ((base, 0), (a, 5), (b, 16), (a, 5)):
        requests = [GenerationRequest([1, 30 + number], PLAIN) for number in range(3)]
        outputs = outputs_of(engine, *requests)
        expected = [tokens_after(request.prompt_token_ids, 6, shift) for request in requests]
        assert [output.token_ids for output in outputs] == expected
    assert [body["lora_name"] for body in fake.heard("/v1/load_lora_adapter")] == ["a@1", "b@1"]


def test_an_adapter_that_vllm_refuses_fails_its_outputs_alone(make: MakeEngine, fake: FakeVllm) -> None:
    engine = make("a")
    (fake.volume / "a" / "adapter_config.json").rename(fake.volume / "a" / "gone.json")
    error = error_of(engine, GenerationRequest(PROMPT, PLAIN))
    assert error.message == "vLLM does not load the adapter a: No adapter found."
    assert len(outputs_of(make(), GenerationRequest(PROMPT, PLAIN))) == 1


def test_the_adapters_that_a_server_knows_are_bounded(
    make: MakeEngine, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.engines.vllm_server.KEPT_ADAPTERS", 1)
    for name in ("a", "b", "a"):
        outputs_of(make(name), GenerationRequest(PROMPT, PLAIN))
    assert [body["lora_name"] for body in fake.heard("/v1/unload_lora_adapter")] == ["a@1", "b@1"]
    assert [body["lora_name"] for body in fake.heard("/v1/load_lora_adapter")] == ["a@1", "b@1", "a@1"]


# ---- the server ---------------------------------------------------------------------------------------


def test_the_command_has_the_settings_and_no_secrets(
    make: MakeEngine, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTWERK_HUB_TOKEN", "secret")
    options = {"tensor_parallel": 2, "slots": 3, "dtype": "float32", "cache_bytes": 1024, "adapter_rank": 20}
    events_of(make(**options))
    (start,) = fake.heard("start")
    for argument in (
        "--tensor-parallel-size=2", "--max-num-seqs=3", "--dtype=float32", "--kv-cache-memory-bytes=1024",
        "--max-lora-rank=32", "--max-model-len=64", "--enable-lora", "--generation-config=vllm",
        '--structured-outputs-config={"backend": "guidance"}',
    ):  # fmt: skip
        assert argument in start["arguments"]
    environment = start["environment"]
    assert not [name for name in environment if name.startswith("GRAFTWERK_") or name == "PYTHONPATH"]
    assert (environment["HF_HUB_OFFLINE"], environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"]) == ("1", "True")


def test_requests_wait_until_the_server_is_ready(make: MakeEngine, fake: FakeVllm) -> None:
    fake.behave(start_seconds=0.5)
    engine = make()
    assert (engine.stage, engine.free_slots) == ("starting vLLM", 0)
    assert engine.step() == []
    events_of(engine)
    assert (engine.stage, engine.free_slots) == (None, 4)


def test_a_server_that_does_not_start_is_an_error_with_its_last_words(
    make: MakeEngine, fake: FakeVllm
) -> None:
    fake.behave(fails=True)
    with pytest.raises(NotReady) as caught:
        events_of(make())
    assert caught.value.message == (
        "vLLM with base ended with status 3; its last lines: loading base | ValueError: the model is too large for this device."
    )


def test_a_server_that_is_never_ready_is_given_up(make: MakeEngine, fake: FakeVllm) -> None:
    fake.behave(start_seconds=600)
    with pytest.raises(NotReady, match=r"was not ready with base after 0\.3 s"):
        events_of(make(start_seconds=0.3))


def test_a_server_that_is_stopped_while_it_starts_is_lost(
    make: MakeEngine, fake: FakeVllm, servers: list[VllmServer]
) -> None:
    fake.behave(start_seconds=600)
    engine = make()
    servers[0].stop()
    assert (engine.is_lost, engine.free_slots) == (True, 0)
    with pytest.raises(NotReady, match="vLLM with base "):
        engine.step()


def test_a_command_that_does_not_exist_is_a_wrong_setting(fake: FakeVllm) -> None:
    with pytest.raises(InvalidSettings, match="there is no program 'no-such-vllm'"):
        VllmServer("base", fake.volume / "base", VllmOptions(command="no-such-vllm serve"))


def test_a_server_that_dies_loses_all_requests_with_its_last_words(make: MakeEngine, fake: FakeVllm) -> None:
    fake.behave(crash_on=60, token_seconds=0.02)
    engine = make()
    events_of(engine)
    pids = fake.pids
    engine.submit(GenerationRequest(PROMPT, PLAIN.model_copy(update={"max_new_tokens": 50})))
    engine.submit(GenerationRequest([1, 60], PLAIN))
    with pytest.raises(NotReady, match=r"was ended by signal 9; its last lines: .*fatal: out of memory"):
        while True:
            engine.step()
    assert all_end(pids), "the keeper ends what the server has left"


def test_a_stopped_server_leaves_no_process(
    make: MakeEngine, fake: FakeVllm, servers: list[VllmServer]
) -> None:
    events_of(make())
    pids = fake.pids
    assert all(map(is_alive, pids))
    servers[0].stop()
    assert all_end(pids, 0)


def test_a_server_whose_keeper_is_killed_is_lost_and_leaves_no_process(
    make: MakeEngine, fake: FakeVllm, servers: list[VllmServer]
) -> None:
    engine = make()
    events_of(engine)
    kill(servers[0].pid, signal.SIGKILL)
    with pytest.raises(NotReady, match="was ended by signal 9"):
        while True:
            engine.step()
    servers[0].stop()
    assert all_end(fake.pids, 1)


def test_a_killed_worker_leaves_no_process(fake: FakeVllm, tmp_path: Path) -> None:
    """Neither the server nor the process that a killed server leaves, nor the folder of its socket."""
    script = tmp_path / "worker.py"
    script.write_text(
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[3])!r})\n"
        "from pathlib import Path\n"
        "from services.engines.vllm import VllmOptions\n"
        "from services.engines.vllm_server import VllmServer\n"
        f"server = VllmServer('base', Path({str(fake.volume / 'base')!r}), VllmOptions(command={FAKE_COMMAND!r}))\n"
        "while not server.is_ready: time.sleep(0.01)\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n",
        encoding="utf-8",
    )
    # the path of a socket has at most 107 characters, which pytest's folder alone may take
    with TemporaryDirectory(prefix="gw-") as scratch:
        environment = os.environ | {"TMPDIR": scratch}
        with subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, env=environment
        ) as worker:
            try:
                assert worker.stdout is not None
                pids = [int(worker.stdout.readline()), *fake.pids]
                assert all(map(is_alive, pids))
                assert [*Path(scratch).iterdir()]
            finally:
                worker.kill()
        assert all_end(pids)
        assert not [*Path(scratch).iterdir()]
