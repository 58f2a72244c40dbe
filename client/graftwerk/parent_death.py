"""`python -m graftwerk.parent_death [--signal TERM] COMMAND…`: runs a command that ends when its parent does.

Linux can send a process a signal when its parent dies (prctl(2), PR_SET_PDEATHSIG). The setting survives exec, so
that it holds for any program. On other systems the command is run without it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(signal_number: int) -> None:
    """Requests a signal from the kernel for the moment when the parent of this process dies.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(arguments: list[str]) -> None:
    """Binds this process to its parent and becomes the command."""
    number = signal.SIGKILL
    if arguments[:1] == ["--signal"]:
        number = signal.Signals[f"SIG{arguments[1]}"]
        arguments = arguments[2:]
    parent = os.getppid()
    if sys.platform == "linux":
        end_with_parent(number)
        if os.getppid() != parent:
            # the parent died before the request: no signal will come
            sys.exit(1)
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
