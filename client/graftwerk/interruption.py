"""Ctrl-C while a job is followed: a question that one key answers."""

import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

from graftwerk.display import note

try:
    import termios
except ImportError:  # Windows has none; there Ctrl-C detaches
    termios = None  # type: ignore[assignment]

Choice = Literal["cancel", "detach", "continue"]

ResultT = TypeVar("ResultT")

KEYS: dict[bytes, Choice] = {
    b"c": "cancel", b"d": "detach", b"\n": "continue", b"\r": "continue", b"\x04": "detach", b"": "detach",
}  # fmt: skip
"""Choices by key; Ctrl-D and a closed terminal detach. Other keys mean nothing."""

ESCAPE = b"\x1b"
SEQUENCE_SECONDS = 0.05
"""The bytes of one key, such as an arrow, follow each other faster than keys that people press."""


def interruptible(wait: Callable[[], ResultT], cancel: Callable[[], None], subject: str) -> ResultT | None:
    """Returns the result of `wait`; None if the person has detached.

    Each Ctrl-C asks what to do, and the waiting begins again unless the answer is to detach.

    Args:
        cancel: cancels what is waited for; it ends soon after.
        subject: what would be canceled, for the question.
    """
    while True:
        try:
            try:
                return wait()
            except KeyboardInterrupt:
                choice = ask(subject)
                if choice == "cancel":
                    cancel()
        except KeyboardInterrupt:
            choice = "detach"
        if choice == "detach":
            return None


def ask(subject: str) -> Choice:
    """Asks for the meaning of a Ctrl-C; without a terminal, and at a second Ctrl-C, it is to detach."""
    if termios is None or not sys.stderr.isatty():
        return "detach"
    note(f"Ctrl-C: press c to cancel {subject}, d to detach, Enter to go on.", style="bold")
    try:
        with _single_keys() as terminal:
            choice = _read_choice(terminal)
    except (OSError, KeyboardInterrupt):
        choice = "detach"
    if choice != "detach":
        note("Canceling …" if choice == "cancel" else "Going on.", style="dim")
    return choice


@contextmanager
def _single_keys() -> Iterator[int]:
    """Yields the terminal in a mode in which a key is read without Enter; nothing that was typed is discarded."""
    terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)  # stdin may be a file of prompts
    try:
        saved = termios.tcgetattr(terminal)
        mode = termios.tcgetattr(terminal)
        mode[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(terminal, termios.TCSADRAIN, mode)
        try:
            yield terminal
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
    finally:
        os.close(terminal)


def _read_choice(terminal: int) -> Choice:
    """Reads keys up to the first that is a choice; those after it are left for the shell."""
    while (key := os.read(terminal, 1)) not in KEYS:
        if key == ESCAPE:
            _skip_sequence(terminal)
    return KEYS[key]


def _skip_sequence(terminal: int) -> None:
    """Reads the rest of an escape sequence (ECMA-48, 5.4), such as that of an arrow key; none follows a bare Escape."""
    if not select.select([terminal], [], [], SEQUENCE_SECONDS)[0]:
        return
    if os.read(terminal, 1) in (b"[", b"O"):
        while not b"\x40" <= os.read(terminal, 1) <= b"\x7e":
            pass
