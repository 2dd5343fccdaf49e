"""Keeps the chatter of libraries away from a person who asked for a compressed model."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

LOUD: Final = ("torch", "torchao", "onnxscript", "onnx_ir")


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence warnings and the loggers of torch and its exporters; errors still arrive as exceptions.

    torch installs handlers on several child loggers, so a level on the parent is not enough.
    """
    children = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in LOUD]
    loggers = [logging.getLogger(name) for name in (*LOUD, *children)]
    disabled = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in zip(loggers, disabled, strict=True):
            logger.disabled = was


@contextmanager
def quiet_native() -> Iterator[None]:
    """Silence Python prints, log records, warnings, and what native code writes to file descriptor 2.

    The descriptor belongs to the whole process: keep the block short.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    saved = os.dup(2)
    try:
        with (
            tempfile.TemporaryFile() as sink,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            os.dup2(sink.fileno(), 2)
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        logging.disable(disabled)
