"""Ctrl-C where the exception that it raises is not enough."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed: native libraries swallow the exception, or make another one of it."""
    pressed = False

    def hear(before: Handler) -> Handler:
        def heard(number: int, frame: FrameType | None) -> None:
            nonlocal pressed
            pressed = True
            before(number, frame)

        return heard

    with _answered(hear):
        yield lambda: pressed


@contextmanager
def held() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block: what the block starts is known by then, and can be ended."""
    pressed = False

    def wait(_: Handler) -> Handler:
        def waiting(_number: int, _frame: FrameType | None) -> None:
            nonlocal pressed
            pressed = True

        return waiting

    try:
        with _answered(wait):
            yield
    finally:
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _answered(by: Callable[[Handler], Handler]) -> Iterator[None]:
    """Answer Ctrl-C by another handler, made from the one before; Python runs handlers in the main thread alone."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, by(before))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
