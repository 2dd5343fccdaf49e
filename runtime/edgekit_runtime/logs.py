"""Logs for machines: one JSON object a line."""

from __future__ import annotations

import json
import logging
from typing import Final

_KNOWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message"}


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what was said beyond it."""

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter.format`."""
        more = {key: value for key, value in vars(record).items() if key not in _KNOWN}
        line = {
            "time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(), **more,
        }  # fmt: skip
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        # In ASCII, which any terminal and file takes, half characters included.
        return json.dumps(line, default=str)
