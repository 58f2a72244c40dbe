"""Log format of all processes: lines of text, or one JSON object per line."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from services.timestamps import utc_text

TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

QUIET = ("httpx", "httpcore", "httpx2", "httpcore2")
"""Loggers of HTTP clients: they log each request, with an address that may hold a password."""


class JsonLines(logging.Formatter):
    """Formatter that writes one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record with its time in UTC, and with its traceback if it has one."""
        fields = {
            "time": utc_text(datetime.fromtimestamp(record.created, UTC), timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def log_config(log_format: str, *, through_root: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns a configuration for `logging.config.dictConfig` that writes everything to standard error.

    Args:
        log_format: `text` or `json`.
        through_root: loggers whose own handlers are removed, so that they write through the root logger.
    """
    formatter: dict[str, Any] = {"()": JsonLines} if log_format == "json" else {"format": TEXT}
    loggers: dict[str, Any] = {name: {"level": "WARNING"} for name in QUIET}
    loggers |= {name: {"level": "INFO", "handlers": [], "propagate": True} for name in through_root}
    return {
        "version": 1,
        "disable_existing_loggers": False,
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
