"""A server as a child process: started, watched and stopped together with all of its own processes."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from services.bounded_text import cut

KEEPER = Path(__file__).with_name("keeper.py")

STOP_SECONDS = 15.0
"""Time that the keeper has to end the server's processes."""

LAST_LINES = 12
LINE_CHARACTERS = 300
"""Lines of the server's output in an error, and the characters of each."""

OWN_PREFIX = "GRAFTWERK_"
"""Variables of this service: a server needs none, and some are secrets."""


class ChildServer:
    """A command that runs until `stop`, or until this process ends in any way. Its output goes to the log."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], scratch: Path, *, logger: logging.Logger
    ) -> None:
        """Starts the command with this environment, without this service's own variables.

        `scratch` is a folder that is removed when the command has ended.

        Raises:
            OSError: the keeper cannot be started.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIX)}
        kept.pop("PYTHONPATH", None)
        self._logger = logger
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(KEEPER), str(scratch), *command],
            env={**kept, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="server-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Id of the keeper, which is the group of the server's processes too."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """True once the server has ended."""
        return self._process.poll() is not None

    def ending(self) -> str:
        """Returns how an ended server ended, and the last lines that it printed."""
        self._reader.join(1)
        status = self._process.wait()
        number = status - 128 if status > 128 else -status
        how = f"was ended by signal {number}" if number > 0 else f"ended with status {status}"
        lines = " | ".join(self._lines)
        return f"{how}; its last lines: {lines}" if lines else f"{how} and printed nothing"

    def stop(self) -> None:
        """Ends the server and all of its processes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        # Without its keeper nothing else would end them.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                text = line.decode("utf-8", "replace").rstrip()
                if text:
                    self._lines.append(cut(text, LINE_CHARACTERS))
                    self._logger.info("%s", text)
