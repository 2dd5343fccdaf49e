"""Reads the next batches while the network works on this one: decoding images takes as long as a small step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
# Seconds after which a reader that nobody waits for looks whether it is still wanted.
_LOOK = 0.1


def ahead(items: Iterator[T], depth: int = 2) -> Generator[T]:
    """Give the items of an iterator, in their order, made by another thread.

    Args:
        items: not used by anybody else; what it raises is raised here.
        depth: so many items wait at most.

    Close the iterator that is returned, and the thread has ended when `close` returns.
    """
    made: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(depth)
    unwanted = threading.Event()

    def give(entry: tuple[T | None, BaseException | None, bool]) -> None:
        while not unwanted.is_set():
            try:
                made.put(entry, timeout=_LOOK)
            except queue.Full:
                continue
            return

    def read() -> None:
        try:
            for item in items:
                give((item, None, False))
                if unwanted.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - raised again where the items are wanted
            give((None, error, True))
        else:
            give((None, None, True))

    reader = threading.Thread(target=read, name="edgekit-ahead", daemon=True)
    reader.start()
    try:
        while True:
            item, error, end = made.get()
            if error is not None:
                raise error
            if end:
                return
            yield item  # type: ignore[misc]  # None stands for no item at the end only
    finally:
        unwanted.set()
        reader.join()
