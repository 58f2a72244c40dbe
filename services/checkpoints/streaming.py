"""The stream that converting and merging share: one tensor at a time, reading behind computing behind writing."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from typing import Protocol, TypeVar

import torch

from services.checkpoints.write_ledger import TensorPlan
from services.progress import CheckCanceled, Progress, Report

THREADS = 2
"""One thread computes while the other waits for the disk; more only add memory."""

POLL_SECONDS = 0.2

T = TypeVar("T")
R = TypeVar("R")

Produce = Callable[[str], Iterable[torch.Tensor]]
"""Gives a planned tensor as blocks of rows, in order: a large one never lies in memory whole."""


class TensorWriter(Protocol):
    """What takes tensors, in any order and from several threads."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all planned tensors."""
        ...

    def keep(self, name: str) -> bool:
        """Whether an earlier try has written this tensor, as far as its bytes on the disk prove it."""
        ...

    def write(self, name: str, blocks: Iterable[torch.Tensor]) -> None:
        """Writes one tensor, given as blocks of rows in order."""


def stream_tensors(
    plans: Iterable[TensorPlan],
    produce: Produce,
    writer: TensorWriter,
    *,
    report: Report,
    check_canceled: CheckCanceled,
) -> None:
    """Produces and writes every planned tensor that is not written yet; at most THREADS of them are under way at once.

    Raises:
        JobCanceled: what `check_canceled` raises, at the latest POLL_SECONDS after it would.
        Whatever `produce` or the writer raises; the rest is not started.
    """

    def work(plan: TensorPlan) -> int:
        if not writer.keep(plan.name):
            writer.write(plan.name, produce(plan.name))
        return plan.size_bytes

    total, done = writer.size_bytes, 0
    report(Progress("writing tensors", 0, total))
    with _threads_shared(), ThreadPoolExecutor(THREADS, thread_name_prefix="tensors") as pool:
        running: set[Future[int]] = set()
        waiting = iter(plans)
        try:
            while True:
                running |= {pool.submit(work, plan) for plan in islice(waiting, THREADS - len(running))}
                if not running:
                    return
                check_canceled()
                ended, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                for future in ended:
                    done += future.result()
                report(Progress("writing tensors", done, total))
        finally:
            for future in running:
                future.cancel()


def in_threads(work: Callable[[T], R], items: Sequence[T], check_canceled: CheckCanceled) -> Iterator[R]:
    """What `work` gives for each item, in order; THREADS of them are under way at once.

    Raises:
        JobCanceled: what `check_canceled` raises, at the latest POLL_SECONDS after it would.
        Whatever `work` raises; the rest is not started.
    """
    with _threads_shared(), ThreadPoolExecutor(THREADS, thread_name_prefix="tensors") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                while not wait([future], POLL_SECONDS).done:
                    check_canceled()
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _threads_shared() -> Iterator[None]:
    """Within, each of our threads has its share of torch's: more threads than cores wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
