"""Log format of all processes: lines of text, or one JSON object per line."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from services.timestamps import utc_text

TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s%(ids)s"

PROBES = ("/healthz", "/readyz")
"""Paths of health probes: their successes are not logged."""

_ids: ContextVar[Mapping[str, str]] = ContextVar("log_ids", default=MappingProxyType({}))

QUIET = ("httpx", "httpcore", "httpx2", "httpcore2")
"""Loggers of HTTP clients: they log each request, with an address that may hold a password."""


SHOWN_PARAMETERS = frozenset(
    {
        "after", "dry_run", "format", "kind", "last_event_id", "limit", "model", "order", "revision", "search", "starting_after",
        "status", "stream",
    }
)  # fmt: skip
"""Query parameters of the API, whose values are logged."""

_PARAMETER = re.compile(r"""(?<=[?&])(?P<name>[^=&\s"']+)(?:=[^&\s"']*)?""")
_BEARER = re.compile(r"(?i)\bbearer\b[\s:]+[^\s\"']+")


def mask_secrets(text: str) -> str:
    """Returns a log line without query parameters that the API does not have, and without bearer keys.

    People send keys in the wrong place by mistake.
    """
    text = _PARAMETER.sub(lambda found: found[0] if found["name"] in SHOWN_PARAMETERS else "***", text)
    return _BEARER.sub("Bearer ***", text)


class MaskSecrets(logging.Filter):
    """Filter that masks secrets in the lines of a server, which hold requests as they came."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns True: every record passes, masked."""
        record.msg, record.args = mask_secrets(record.getMessage()), ()
        return True


@contextmanager
def log_ids(**ids: str) -> Iterator[None]:
    """Adds ids (`request`, `job`, `execution`) to all lines that the block logs; empty ones are left out."""
    token = _ids.set({**_ids.get(), **{name: id for name, id in ids.items() if id}})
    try:
        yield
    finally:
        _ids.reset(token)


def set_log_ids(**ids: str) -> None:
    """Replaces the ids of the lines that this thread or greenlet logs."""
    _ids.set(ids)


class SuccessfulProbes(logging.Filter):
    """Filter that drops the access lines of successful health probes, which come every few seconds."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns False for such a line."""
        atoms = record.args if isinstance(record.args, Mapping) else {}
        return not (atoms.get("U") in PROBES and str(atoms.get("s", "")).startswith("2"))


class TextLines(logging.Formatter):
    """Formatter of lines of text, with the ids at the end."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        ids = " ".join(f"{name}={id}" for name, id in _ids.get().items())
        record.ids = f" [{ids}]" if ids else ""
        return super().format(record)


class JsonLines(logging.Formatter):
    """Formatter that writes one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record with its time in UTC, and with its traceback if it has one."""
        fields = {
            "time": utc_text(datetime.fromtimestamp(record.created, UTC), timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_ids.get(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def log_config(log_format: str, *, through_root: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns a configuration for `logging.config.dictConfig` that writes everything to standard error.

    Args:
        log_format: `text` or `json`.
        through_root: loggers of a server, whose own handlers are removed, so that they write through the root logger.
    """
    formatter: dict[str, Any] = {"()": JsonLines} if log_format == "json" else {"()": TextLines, "fmt": TEXT}
    loggers: dict[str, Any] = {name: {"level": "WARNING"} for name in QUIET}
    through = {"level": "INFO", "handlers": [], "propagate": True, "filters": ["probes", "mask"]}
    loggers |= dict.fromkeys(through_root, through)
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"probes": {"()": SuccessfulProbes}, "mask": {"()": MaskSecrets}},
        "formatters": {"line": formatter},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "line",
            }
        },
        "root": {"level": "INFO", "handlers": ["stderr"]},
        "loggers": loggers,
    }
