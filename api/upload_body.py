"""Bodies of uploads: received piece by piece, of any size, without holding more than one piece in memory."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from flask import request
from werkzeug.exceptions import BadRequest
from werkzeug.wsgi import get_input_stream

from api.body_stream import FAULTS, idle_timeout
from services.models.upload_file import Appender, too_many_bytes

PIECE_BYTES = 64 * 1024


def receive(appender: Appender) -> None:
    """Appends the body of the current request to an upload, and checks it against the request's checksum.

    Raises:
        BadRequest: the connection broke; what has arrived is kept.
        UploadTooLarge: there are more bytes than the upload lacks; nothing of the body is kept.
        ChecksumMismatch: the checksum differs; nothing of the body is kept.
        DiskFull: the volume is full; what has been written is kept.
    """
    length = request.content_length
    if length is not None and length > appender.missing_bytes:
        raise too_many_bytes(appender.upload)
    # Flask's own limit is for JSON bodies
    stream = get_input_stream(request.environ, max_content_length=None)
    received = 0
    with idle_timeout():
        for piece in _pieces(stream):
            appender.write(piece)
            received += len(piece)
            time.sleep(0)  # a fast sender does not keep the other requests of this process from running
    if length is not None and received < length:
        raise BadRequest(f"The connection broke after {received} of {length} bytes.")
    appender.verify()


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    try:
        while piece := stream.read(PIECE_BYTES):
            yield piece
    except FAULTS as error:
        with suppress(*FAULTS):  # a piece that had arrived in part is still in the server's buffer
            if piece := stream.read(PIECE_BYTES):
                yield piece
        raise BadRequest("The connection broke; the bytes that arrived are kept.") from error
