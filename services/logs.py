"""How every process writes its log: lines of text, or one JSON object a line."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from services.timestamps import utc_text

TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

QUIET = ("httpx", "httpcore")
"""They tell of each request, with an address that may hold a password."""


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record with its time in UTC, and its traceback if it has one."""
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
    """Everything to standard error in this format (`text` or `json`), in the schema of `logging.config.dictConfig`.

    Args:
        through_root: loggers that have handlers of their own and shall not.
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
