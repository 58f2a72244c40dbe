"""The process of llama.cpp when its worker is killed: on this machine, where processes are seen."""

import os
import signal
import time

from tests.e2e.product import LocalStack, Product, is_alive


def test_a_killed_worker_leaves_no_process_and_its_jobs_run_again(
    product: Product, stack: LocalStack, gguf_model: str
) -> None:
    endless = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 1500, "logit_bias": {"2": -100}}
    job = product.submit(kind="generate", model=gguf_model, prompt="abc", sampling=endless)
    product.wait_until_running(job["id"])
    deadline = time.monotonic() + 60
    while not (programs := processes(stack, "llama_cpp_program.py")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workers = [pid for pid in processes(stack, "-m worker generate") if pid not in programs]
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(is_alive, programs)):
        assert time.monotonic() < deadline
        time.sleep(0.1)

    outputs = product.succeeded(job["id"])["result"]["outputs"]
    assert outputs[0]["usage"]["completion_tokens"] == 1500


def processes(stack: LocalStack, words: str) -> list[int]:
    return [pid for pid, line in stack.descendants().items() if words in line]
