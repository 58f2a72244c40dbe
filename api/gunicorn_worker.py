"""Gunicorn's worker of the API: connections that wait for their client end in time, and give way to others.

`gunicorn_conf.py` loads this file by its path: as a module of the package it would import the application, and with it
redis-py, before gevent has patched the standard library.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import gevent
from gevent.local import local
from gunicorn.workers.ggevent import GeventWorker

HEAD_SECONDS = 10
"""Time within which a new connection must have sent the head of its first request."""

IO_SECONDS = 60
"""Longest time that one operation waits for a client to send or to take bytes."""

SPARE_PLACES = 50
"""Places for connections beyond those that make others give way, so that new ones are accepted meanwhile."""


class Connections:
    """The open connections of a process; those that wait for their client, the longest wait first.

    Clients cannot be told apart by their address, which behind a container's gateway is the same for all. When all
    places are taken, the connection that has waited longest is closed.
    """

    def __init__(self, places: int) -> None:
        self.places = places
        self._open: set[int] = set()
        self._waiting: dict[int, socket.socket] = {}

    @contextmanager
    def opened(self, client: socket.socket) -> Iterator[None]:
        """Counts a connection during the block; it waits for its first request."""
        if len(self._open) >= self.places:
            self._close_longest_waiting()
        self._open.add(id(client))
        self.wait(client)
        try:
            yield
        finally:
            self._open.discard(id(client))
            self.work(client)

    def wait(self, client: socket.socket) -> None:
        """Marks a connection as one that waits for its client from now on."""
        self._waiting.pop(id(client), None)
        self._waiting[id(client)] = client

    def work(self, client: socket.socket) -> None:
        """Marks a connection as one whose request is being answered."""
        self._waiting.pop(id(client), None)

    def _close_longest_waiting(self) -> None:
        for key in self._waiting:
            # gevent would end the read of a socket that is shut down with an error; through a copy it sees its end
            with suppress(OSError), socket.socket(fileno=os.dup(self._waiting.pop(key).fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
            return


class WaitingReader:
    """Reader of a request's body that marks its connection as waiting during each read."""

    def __init__(self, reader: Any, connections: Connections, client: socket.socket) -> None:
        self._reader, self._connections, self._client = reader, connections, client

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes of the body."""
        self._connections.wait(self._client)
        try:
            data: bytes = self._reader.read(size)
            return data
        finally:
            self._connections.work(self._client)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)


class ApiWorker(GeventWorker):  # type: ignore[misc]
    """Gevent worker with limits on how long a connection may wait for its client."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.connections = Connections(max(1, self.worker_connections - SPARE_PLACES))
        self.current = local()

    def timeout_ctx(self) -> gevent.Timeout:
        """Returns the limit on the next request's head: shorter for the first one of a connection."""
        return gevent.Timeout(getattr(self.current, "seconds", HEAD_SECONDS), False)

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Answers the requests of one connection."""
        client.settimeout(IO_SECONDS)
        with self.connections.opened(client):
            super(GeventWorker, self).handle(listener, client, addr)

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        """Answers one request."""
        self.connections.work(sock)
        req.body.reader = WaitingReader(req.body.reader, self.connections, sock)
        try:
            super().handle_request(listener_name, req, sock, addr)
        except TimeoutError as error:  # the client takes no bytes; gunicorn would log a traceback
            raise ConnectionResetError(errno.ECONNRESET, "the client takes no bytes") from error
        finally:
            self.current.seconds = self.cfg.keepalive
            self.connections.wait(sock)
