"""Limits of an isolated process, and the errors of one that reached them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an isolated process.

    `cpu_seconds` is the processor time of one request, `memory_bytes` the address space of the process. `seconds` is the
    longest wait for an answer, for a process that does not run; a busy machine should not reach it.
    """

    cpu_seconds: float = 2.0
    memory_bytes: int = 512 << 20
    seconds: float = 20.0


class LimitExceeded(Exception):
    """A request needed more than the limits allow; the text says of what."""


class ProcessDied(Exception):
    """The process has died, twice in a row, before it answered; the text says how."""
