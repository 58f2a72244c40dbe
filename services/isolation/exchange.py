"""One request on its way to an isolated process and the answer on its way back, without ever blocking."""

import os
import selectors
import subprocess
import time

from services.isolation.frames import LENGTH_BYTES
from services.isolation.limits import LimitExceeded, Limits, ProcessDied

WAIT_SECONDS = 0.01
"""Longest wait for an answer before the caller may do something else."""

READ_BYTES = 1 << 20


class Exchange:
    """Exchange of one request and its answer. The pipes of the process do not block."""

    def __init__(self, process: "subprocess.Popen[bytes]", request: bytes, limits: Limits) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        self._unsent = memoryview(request)
        self._received = bytearray()
        self._limits = limits
        self._waited = 0.0

    @property
    def content(self) -> bytes:
        """The answer's content, as far as it has arrived."""
        return bytes(self._received[LENGTH_BYTES:])

    def advance(self) -> bool:
        """Transfers what can be transferred, waiting for a moment; returns True once the answer is complete.

        Raises:
            ProcessDied: The process has closed its pipes.
            LimitExceeded: All waits together took longer than the limit.
        """
        while not self._is_complete:
            began = time.monotonic()
            if not self._transfer():
                self._waited += time.monotonic() - began
                if self._waited > self._limits.seconds:
                    raise LimitExceeded(f"more than {self._limits.seconds:g} s")
                return False
        return True

    @property
    def _is_complete(self) -> bool:
        if len(self._received) < LENGTH_BYTES:
            return False
        length = int.from_bytes(self._received[:LENGTH_BYTES], "big")
        if length > self._limits.memory_bytes:
            raise ProcessDied("it answered with nonsense")
        return len(self._received) >= LENGTH_BYTES + length

    def _transfer(self) -> bool:
        """Writes and reads once; returns False if neither was possible within the wait."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            if self._unsent:
                selector.register(self._in, selectors.EVENT_WRITE)
            ready = [key.fd for key, _ in selector.select(WAIT_SECONDS)]
        try:
            if self._in in ready:
                self._unsent = self._unsent[os.write(self._in, self._unsent) :]
            if self._out in ready:
                self._receive()
        except BrokenPipeError:
            raise ProcessDied("it closed its input") from None
        return bool(ready)

    def _receive(self) -> None:
        part = os.read(self._out, READ_BYTES)
        if not part:
            raise ProcessDied("it ended without an answer")
        self._received += part
