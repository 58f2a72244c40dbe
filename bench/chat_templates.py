"""Cost of rendering chat templates in an isolated process, and what hostile ones cost: `python -m bench.chat_templates`."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import psutil

from services.architectures.llama3 import LLAMA_3_CHAT_TEMPLATE
from services.generate.chat_template import LIMITS
from services.isolation.chat_template import render
from services.isolation.limits import LimitExceeded
from services.isolation.process import IsolatedProcess, Steps, advance

PROMPTS = 2000
MESSAGES = [
    {"role": role, "content": "what does a stream of events cost? " * 8} for role in ("user", "assistant")
] * 3
HOSTILE = {
    "nested loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "a string doubled to 3.5 GB": "{% set n = namespace(s='x' * 7000000) %}{% for a in range(9) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "`'{:>9999999999}'.format`": "{{ '{:>9999999999}'.format(1) }}",
    "`tojson(indent=999999999)`": "{{ [1] | tojson(indent=999999999) }}",
    "text without end": "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
}


def main() -> None:
    process = IsolatedProcess("services.isolation.chat_template", LIMITS)
    request = _request(LLAMA_3_CHAT_TEMPLATE)
    first = _milliseconds(lambda: process.call(request))
    apart = [_milliseconds(lambda: process.call(request)) for _ in range(PROMPTS)]
    here = [_in_process(request) for _ in range(PROMPTS)]
    print(f"first prompt {first:.0f} ms; isolated {_text(apart)}; in the same process {_text(here)}")
    for name, template in HOSTILE.items():
        seconds, peak, end = _hostile(process, template)
        print(f"| {name} | {end} | {seconds:.2f} s | {peak >> 20} MiB |")


def _request(template: str) -> dict[str, Any]:
    variables = {"messages": MESSAGES, "add_generation_prompt": True, "bos_token": "<|begin_of_text|>"}
    return {"template": template, "variables": variables, "characters": 1 << 18}


def _milliseconds(call: Callable[[], Steps[Any]]) -> float:
    start = time.perf_counter()
    steps = call()
    while advance(steps) is None:
        pass
    return (time.perf_counter() - start) * 1000


def _in_process(request: dict[str, Any]) -> float:
    start = time.perf_counter()
    render(request)
    return (time.perf_counter() - start) * 1000


def _text(milliseconds: list[float]) -> str:
    ordered = sorted(milliseconds)
    return f"{statistics.median(ordered):.3f} ms median, {ordered[len(ordered) * 99 // 100]:.3f} ms p99"


def _hostile(process: IsolatedProcess, template: str) -> tuple[float, int, str]:
    """Returns the seconds until the refusal, the largest memory of the process that was seen, and the reason."""
    start, peak, steps = time.perf_counter(), 0, process.call(_request(template))
    try:
        while (answer := advance(steps)) is None:
            if process.pid is not None and psutil.pid_exists(process.pid):
                peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        reason = answer["exceeded"]
    except LimitExceeded as error:
        reason = str(error)
    return time.perf_counter() - start, peak, reason


if __name__ == "__main__":
    main()
