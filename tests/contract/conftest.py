"""Fixtures of the contract tests."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Gives torch one thread: tiny tensors are slower with more, and sums come in the same order everywhere.

    torch is looked up, not imported: many tests do without it.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
