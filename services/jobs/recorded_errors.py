"""Errors of jobs as their records and logs have them."""

import os
import traceback
from pathlib import Path

from pydantic import ValidationError
from redis.exceptions import ConnectionError, TimeoutError
from rq.timeouts import BaseTimeoutException

from services.errors import DiskFull, GraftwerkError, InternalError, InvalidRequest, JobTimeout, NotReady
from services.files.disk_full import is_disk_full


def as_error(error: Exception) -> GraftwerkError:
    """Returns the error for a job's record: our own errors unchanged, known ones translated, others as `internal_error`."""
    if isinstance(error, GraftwerkError):
        return error
    if isinstance(error, (ConnectionError, TimeoutError)):
        return NotReady(
            f"Redis did not answer while the job ran: {_sentence(error)}",
            "Check that it runs. The job is run again, at most twice.",
        )
    if isinstance(error, BaseTimeoutException):
        return JobTimeout(f"The job took too long: {_sentence(error)}", "Raise JOB_TIMEOUT_SECONDS.")
    if is_disk_full(error):
        return DiskFull(f"The volume is full: {_sentence(error)}", "Delete models, or enlarge the volume.")
    if isinstance(error, ValidationError):
        return InvalidRequest(
            f"This worker cannot read the request: {_sentence(error)}",
            "Run API and workers of the same version.",
        )
    return InternalError(f"{type(error).__name__}: {_sentence(error)}", "The traceback is in the job's log.")


def _sentence(error: Exception) -> str:
    """Returns the text of an error with one full stop at its end, without the folders of a file's path."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.strerror}: {Path(os.fsdecode(error.filename)).name}"
    return f"{text.rstrip().rstrip('.')}."


def traceback_of(error: Exception) -> str:
    """Returns the traceback for the job's log."""
    return "".join(traceback.format_exception(error)).rstrip()
