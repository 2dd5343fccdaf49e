"""Keeps the chatter of torch away from a person who asked for a compressed model."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and every `torch` logger; errors still arrive as exceptions.

    torch installs handlers on several child loggers, so a level on the parent is not enough.
    """
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("torch", "torchao")]
    loggers = [logging.getLogger(name) for name in ("torch", *names)]
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
