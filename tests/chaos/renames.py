"""Count of the renames by which models appear on the volume, by inotify(7)."""

import ctypes
import os
import struct
import threading
from collections import Counter
from pathlib import Path

IN_MOVED_TO, IN_NONBLOCK = 0x80, 0o4000
HEADER = struct.Struct("iIII")
POLL_SECONDS = 0.2


class Renames:
    """Counts, by name, what was renamed into a folder."""

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter()
        libc = ctypes.CDLL(None, use_errno=True)
        self._file = libc.inotify_init1(IN_NONBLOCK)
        if self._file < 0 or libc.inotify_add_watch(self._file, str(folder).encode(), IN_MOVED_TO) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="renames", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Reads what is left and ends the thread."""
        self._over.set()
        self._thread.join(10)
        self._read()
        os.close(self._file)

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            self._read()

    def _read(self) -> None:
        try:
            data = os.read(self._file, 65536)
        except BlockingIOError:
            return
        while data:
            _, _, _, length = HEADER.unpack_from(data)
            name = data[HEADER.size : HEADER.size + length].rstrip(b"\0").decode()
            self.counts[name] += 1
            data = data[HEADER.size + length :]
