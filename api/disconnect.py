"""Connections of clients: has the peer gone?"""

import select
import socket
from collections.abc import Callable


def disconnect_check(connection: socket.socket | None) -> Callable[[], bool]:
    """Returns a function that says if the peer has closed a connection; always False where the server hides it."""

    def is_disconnected() -> bool:
        if connection is None:
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        if not poll.poll(0):
            return False
        try:
            return not connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    return is_disconnected
