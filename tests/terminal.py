"""A terminal for tests: bash in tmux, driven by keys and read as its screen."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WIDTH, HEIGHT = 100, 40
PROMPT = "ready>"
SECONDS = 60.0
"""Longest time that a text takes to appear, on a machine with much load."""


class Terminal:
    """A shell in tmux. A client in control mode reports each output, so that nothing polls."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._environment = environment
        self._tmux = ["tmux", "-u", "-f", "/dev/null", "-S", str(folder / "tmux.socket")]
        size = ("-x", str(WIDTH), "-y", str(HEIGHT))
        self._shell = "bash --noprofile --rcfile " + str(_rcfile(folder))
        start = ("new-session", "-d", *size, "-c", str(folder), self._shell)
        subprocess.run([*self._tmux, *start], env=environment, check=True)
        self._control = subprocess.Popen(
            [*self._tmux, "-C", "attach"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def type(self, text: str) -> None:
        """Types characters; a newline is Enter."""
        for number, line in enumerate(text.split("\n")):
            if number:
                self.press("Enter")
            if line:
                self._run("send-keys", "-l", "--", line)

    def press(self, *keys: str) -> None:
        """Presses keys by tmux's names, such as Enter, C-c or Right."""
        self._run("send-keys", *keys)

    def paste(self, text: str) -> None:
        """Pastes a text in one piece, marked as pasted (bracketed paste) where the program asks for that."""
        self._run("set-buffer", "--", text)
        self._run("paste-buffer", "-p", "-r")

    def screen(self) -> str:
        """Returns the lines of the screen and of its history; those that the terminal has wrapped are one."""
        return self._run("capture-pane", "-p", "-J", "-S", "-2000")

    def wait_for(self, pattern: str, seconds: float = SECONDS) -> re.Match[str]:
        """Returns the first match of a regular expression on the screen; fails if it does not appear in time."""
        deadline = time.monotonic() + seconds
        assert self._control.stdout is not None
        while (found := re.search(pattern, self.screen(), re.MULTILINE)) is None:
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not appear within {seconds} s on this screen:\n{self.screen()}"
            if select.select([self._control.stdout], [], [], min(left, 1))[0]:
                os.read(self._control.stdout.fileno(), 65536)
        return found

    def run(self, command: str) -> None:
        """Types a command that prints its exit code when it has ended."""
        self.wait_for(rf"{PROMPT} $")
        self.type(f'{command}; echo "exit code $?"\n')

    def restart(self) -> None:
        """Replaces the shell by a new one on an empty screen, as a new terminal would have it."""
        self._run("respawn-pane", "-k", self._shell)
        self.wait_for(rf"\A{PROMPT} $")

    def end(self) -> None:
        """Ends the shell and what runs in it."""
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)
        self._control.communicate(timeout=10)

    def _run(self, *command: str) -> str:
        # a new shell gets the PATH of the client that asks for it
        done = subprocess.run([*self._tmux, *command], env=self._environment, capture_output=True, check=True)
        return done.stdout.decode()


def _rcfile(folder: Path) -> Path:
    file = folder / "rc"
    file.write_text(
        f"PS1='{PROMPT} '\nbind 'set enable-bracketed-paste off'\n[[ -f ~/.bashrc ]] && . ~/.bashrc\n"
    )
    return file


@contextmanager
def terminal(folder: Path, **environment: str) -> Iterator[Terminal]:
    """Runs a shell whose home is `folder` and which finds the `graftwerk` command of this environment."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("GRAFTWERK_", "TMUX"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"HOME": str(folder), "PATH": path, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    running = Terminal(folder, inherited | own | environment)
    try:
        running.wait_for(PROMPT)
        yield running
    finally:
        running.end()
