"""Stream of tensors that conversions and merges share: reading, computing and writing overlap, a few tensors at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import torch

from services.checkpoints.tensor_writer import TensorWriter
from services.checkpoints.write_hooks import WriteHooks
from services.checkpoints.write_ledger import TensorPlan
from services.progress import CheckCanceled, Progress

THREADS = 2
"""Number of threads: one computes while the other waits for the disk; more of them only add memory."""

POLL_SECONDS = 0.2
"""Longest time between two checks for cancellation."""

T = TypeVar("T")
R = TypeVar("R")

Produce = Callable[[str], Iterable[torch.Tensor]]
"""Function that gives a planned tensor as blocks of rows, in order, so that a large one is never in memory whole."""


def stream_tensors(
    plans: Iterable[TensorPlan], produce: Produce, writer: TensorWriter, hooks: WriteHooks
) -> None:
    """Produces and writes every planned tensor that is not written yet, at most THREADS of them at once.

    Errors of `produce` and of the writer are raised as they are; no further tensor is started.

    Raises:
        JobCanceled: `hooks.check_canceled` has raised it, at the latest POLL_SECONDS after it would.
    """

    def write(plan: TensorPlan) -> int:
        if not writer.reuse(plan.name):
            writer.write(plan.name, produce(plan.name))
        return plan.size_bytes

    total, done = writer.size_bytes, 0
    hooks.report(Progress("writing tensors", 0, total))
    with _cores_shared(), ThreadPoolExecutor(THREADS, thread_name_prefix="tensors") as pool:
        running: set[Future[int]] = set()
        waiting = iter(plans)
        try:
            while True:
                running |= {pool.submit(write, plan) for plan in islice(waiting, THREADS - len(running))}
                if not running:
                    return
                hooks.check_canceled()
                ended, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                for future in ended:
                    done += future.result()
                hooks.report(Progress("writing tensors", done, total))
        finally:
            for future in running:
                future.cancel()


def in_threads(work: Callable[[T], R], items: Sequence[T], check_canceled: CheckCanceled) -> Iterator[R]:
    """Yields the result of `work` for each item, in order; THREADS of them run at once.

    Errors of `work` are raised as they are; no further item is started.

    Raises:
        JobCanceled: `check_canceled` has raised it, at the latest POLL_SECONDS after it would.
    """
    with _cores_shared(), ThreadPoolExecutor(THREADS, thread_name_prefix="tensors") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                while not wait([future], POLL_SECONDS).done:
                    check_canceled()
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _cores_shared() -> Iterator[None]:
    """Gives each of our threads its share of torch's threads: more threads than cores wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
