"""Chat templates that loop, fill the memory or write without end: only their own job fails."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from services.errors import JobCanceled, TemplateLimitExceeded
from services.generate import ChatTemplate, LoadedModel, build_prompt, prompt_steps
from services.isolation.limits import LimitExceeded, Limits, ProcessDied
from services.isolation.process import IsolatedProcess, complete
from services.kinds.generate import GenerateRequest
from services.templates import Message, PromptParts
from tests.contract.generate.engine_driver import Driver, run_job
from tests.redis_server import until

MODULE = "services.isolation.chat_template"
QUICK = Limits(cpu_seconds=0.5, memory_bytes=256 << 20)
HELLO = [Message(role="user", content="Hello")]

ENDLESS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
HOSTILE = {
    ENDLESS: "needs more than 0.5 s of processor time",
    "{% set n = namespace(s='x' * 999) %}{% for a in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}": "MiB of memory",
    "{{ '{:>9999999999}'.format(1) }}": "needs more than 256 MiB of memory",
    "{{ [1] | tojson(indent=999999999) }}": "needs more than 256 MiB of memory",
    "{{ ('a ' * 2**25) | wordcount }}": "needs more than",
    "{% for a in range(9999) %}{{ 'x' * 99 }}{% endfor %}": "needs more than 262154 characters of text",
}


def rendered(process: IsolatedProcess, template: str, **variables: Any) -> Any:
    request = {"template": template, "variables": variables, "characters": 1000}
    return complete(process.call(request))


# ---- limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", HOSTILE)
def test_a_template_that_reaches_a_limit_is_refused(loaded: LoadedModel, template: str) -> None:
    chat_template = ChatTemplate(template, QUICK)
    with pytest.raises(TemplateLimitExceeded, match=HOSTILE[template]):
        build_prompt(loaded.tokenizer, PromptParts(messages=HELLO), chat_template=chat_template)


def test_the_process_goes_on_after_a_refused_request() -> None:
    process = IsolatedProcess(MODULE, QUICK)
    for _ in range(2):
        with pytest.raises(LimitExceeded, match="processor time"):
            rendered(process, ENDLESS)
        assert rendered(process, "{{ x }}", x="é") == {"text": "é"}


def test_the_reason_of_a_refusal_is_cut() -> None:
    found = rendered(IsolatedProcess(MODULE, QUICK), "{{ raise_exception('x' * 9999) }}")
    assert len(found["refused"]) <= 500 and "characters" in found["refused"]


def test_a_process_that_does_not_run_is_replaced() -> None:
    process = IsolatedProcess(MODULE, Limits(seconds=0.5))
    rendered(process, "warm")
    assert process.pid is not None
    psutil.Process(process.pid).suspend()
    with pytest.raises(LimitExceeded, match=r"more than 0\.5 s"):
        rendered(process, "x" * 1_000_000)
    assert process.pid is None


# ---- death --------------------------------------------------------------------------------------------


def test_a_process_that_is_killed_between_two_requests_is_replaced() -> None:
    process = IsolatedProcess(MODULE, QUICK)
    pids = set()
    for number in range(3):
        assert rendered(process, "{{ n }}", n=number) == {"text": str(number)}
        assert process.pid is not None
        pids.add(process.pid)
        psutil.Process(process.pid).kill()
    assert len(pids) == 3


def test_a_process_that_is_killed_during_a_request_is_replaced_once() -> None:
    process = IsolatedProcess(MODULE, Limits(cpu_seconds=60))
    steps = process.call({"template": ENDLESS, "variables": {}, "characters": 9})
    next(steps)
    first = process.pid
    assert first is not None
    psutil.Process(first).kill()
    until(lambda: next(steps) is None and process.pid not in (None, first))
    assert process.pid is not None
    psutil.Process(process.pid).kill()
    with pytest.raises(ProcessDied, match=f"exit status {-signal.SIGKILL}"):
        complete(steps)


def test_a_module_that_cannot_start_is_an_error() -> None:
    with pytest.raises(ProcessDied, match="exit status 1"):
        complete(IsolatedProcess("services.no_such_module", QUICK).call({}))


def test_the_process_ends_with_its_parent() -> None:
    code = (
        "from services.isolation.process import *; from services.isolation.limits import Limits\n"
        f"process = IsolatedProcess({MODULE!r}, Limits(cpu_seconds=60))\n"
        f"steps = process.call({{'template': {ENDLESS!r}, 'variables': {{}}, 'characters': 9}})\n"
        "next(steps); print(process.pid, flush=True)\n"
        "while True: next(steps)"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=10)


# ---- other jobs ---------------------------------------------------------------------------------------


def request(loaded: LoadedModel, **fields: Any) -> GenerateRequest:
    sampling = {"do_sample": False, "max_new_tokens": 8}
    body = {"kind": "generate", "model": loaded.folder.name, "sampling": sampling, **fields}
    return GenerateRequest.model_validate(body)


def test_only_the_job_with_the_template_fails(loaded: LoadedModel) -> None:
    hostile_request = request(loaded, messages=[{"role": "user", "content": "Hello"}])
    driver = Driver(replace(loaded, chat_template=ChatTemplate(ENDLESS)), hostile_request)
    hostile = driver.add(hostile_request)
    for _ in range(2):
        other = driver.add(request(loaded, prompt="Hello"))
        driver.run_until(lambda job=other: job.result is not None)
    assert hostile.error is None  # its template is still being rendered
    driver.run_until(lambda: hostile.error is not None)
    assert isinstance(hostile.error, TemplateLimitExceeded)


def test_cancellation_ends_the_rendering(loaded: LoadedModel) -> None:
    hostile_request = request(loaded, messages=[{"role": "user", "content": "Hello"}])
    template = ChatTemplate(ENDLESS, Limits(cpu_seconds=60))
    driver = Driver(replace(loaded, chat_template=template), hostile_request)
    before = psutil.Process().children()
    jobs = [driver.add(hostile_request), driver.add(hostile_request)]
    for _ in range(3):
        driver.scheduler.step()
    (child,) = set(psutil.Process().children()) - set(before)
    for job in jobs:
        job.stop_reason = JobCanceled("The job was canceled.")
    driver.scheduler.step()
    assert [type(job.error) for job in jobs] == [JobCanceled, JobCanceled]
    assert not child.is_running()


def test_a_second_prompt_waits_for_the_first(loaded: LoadedModel) -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    first, second = (
        prompt_steps(loaded.tokenizer, PromptParts(messages=HELLO), chat_template=template) for _ in range(2)
    )
    next(first)  # the process is still starting
    next(second)
    first.close()
    assert complete(second).token_ids == loaded.tokenizer.encode("Hello", add_bos=False)


def test_a_hostile_template_fails_a_file_of_prompts_at_once(loaded: LoadedModel) -> None:
    """Not each of its prompts in turn."""
    prompts = [{"messages": [{"role": "user", "content": "Hello"}]}] * 50
    path = loaded.folder.parent / "incoming" / "prompts.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    hostile = replace(loaded, chat_template=ChatTemplate("{{ 'x' * 10**12 }}"))
    with pytest.raises(TemplateLimitExceeded):
        run_job(hostile, request(loaded, prompts_file="incoming/prompts.jsonl"))


# ---- as in transformers -------------------------------------------------------------------------------

EQUAL = [
    "{{ messages | tojson }}{{ {'b': '<ü>', 'a': 1} | tojson(indent=2, sort_keys=true) }}",
    "{{ {'a': [1, 2]} | tojson(ensure_ascii=true, separators=(',', ':')) }}",
    "{% generation %}{{ messages[0].content }}\n{% endgeneration %}!",
    "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}\n{% endfor %}",
    "  {% if true %}\n  x\n  {% endif %}\n",
    "{% set n = namespace(a=1, self=2) %}{% set n.a = 3 %}{{ n.a }}{{ dict(b=n.self) }}{{ dict.fromkeys('ab') }}",
    "{{ strftime_now('%Y-%B') }}{{ undefined }}{{ bos_token }}",
]
UNSAFE = [
    "{% set n = namespace() %}{% set n['__class__'] = 1 %}",
    "{% set n = namespace(_a=1) %}",
    "{{ dict.__init__() }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception('no') }}",
]


@pytest.fixture(scope="module")
def process() -> IsolatedProcess:
    return IsolatedProcess(MODULE, Limits())


VARIABLES = {"messages": [{"role": "user", "content": "<é>'\""}] * 3, "bos_token": "<s>"}


@pytest.mark.parametrize("template", EQUAL)
def test_a_template_renders_as_in_transformers(process: IsolatedProcess, template: str) -> None:
    expected = _compile_jinja_template(template).render(**VARIABLES)
    assert rendered(process, template, **VARIABLES) == {"text": expected}


@pytest.mark.parametrize("template", UNSAFE)
def test_a_template_that_transformers_refuses_is_refused(process: IsolatedProcess, template: str) -> None:
    with pytest.raises(Exception):  # noqa: B017 - each has another class
        _compile_jinja_template(template).render(**VARIABLES)
    assert "refused" in rendered(process, template, **VARIABLES)


# ---- the process --------------------------------------------------------------------------------------


def test_the_process_is_small_and_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWERK_REDIS_URL", "redis://:secret@host")
    process = IsolatedProcess(MODULE, QUICK)
    rendered(process, "warm")
    child = psutil.Process(process.pid)
    assert child.memory_info().rss < 64 << 20
    assert not any("torch" in file.path for file in child.memory_maps())
    assert set(child.environ()) <= {"PATH", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "LC_CTYPE"}
