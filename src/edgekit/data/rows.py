"""Where samples come from: something that can be iterated in batches, any number of times."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Inputs = tuple[np.ndarray, ...]
Batch = tuple[Inputs, np.ndarray | None]
# What is held back, at most, to shuffle what can only be read in its own order.
_WINDOW_ROWS = 4096
_WINDOW_VALUES = 1 << 26


@dataclass(frozen=True)
class Rows:
    """A set of samples that is read in batches, never as a whole.

    Attributes:
        count: number of samples.
        batches: row numbers and a batch size → raw batches (inputs in model order, labels or None). Row numbers
            are sorted, or in any order where `any_order`.
        has_labels: whether the batches carry labels.
        where: file, folder or callable, for messages.
        name: what to call the sample of a row number in a message, as the user would find it.
        prints: one short digest per row, to find rows that two sets share.
        digest: sha256 of the samples and labels of row numbers, read as cheaply as the source allows.
        any_order: rows can be read in any order; otherwise only in their own.
    """

    count: int
    batches: Callable[[np.ndarray, int], Iterator[Batch]]
    has_labels: bool
    where: str
    name: Callable[[int], str]
    prints: Callable[[np.ndarray], set[bytes]]
    digest: Callable[[np.ndarray], str]
    any_order: bool = True


@dataclass(frozen=True)
class Sets:
    """What a source offers.

    Attributes:
        calibration: None when one set has to serve for all.
        evaluation: the set to measure on.
        training: the set to train on, None if the source names none.
        labels: class names, if the source knows them.
        notes: for the report.
        held_out: the evaluation set is named as such, so nothing of it may be trained on.
    """

    calibration: Rows | None
    evaluation: Rows
    training: Rows | None = None
    labels: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    held_out: bool = False


def digest_of(batches: Iterator[Batch]) -> str:
    """Sha256 (hex) of samples and labels as they come from `Rows.batches`."""
    digest = hashlib.sha256()
    for inputs, labels in batches:
        for value in (*inputs, *([] if labels is None else [labels])):
            digest.update(f"{value.dtype}{value.shape[1:]}".encode())
            digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def in_windows(rows: Rows, order: np.ndarray, size: int) -> Iterator[Batch]:
    """Batches in an order that the source cannot give: rows are held back in windows and shuffled in them.

    Args:
        rows: can be read in their own order only.
        order: row numbers, shuffled; it decides the order within each window.
        size: of the batches; the last one may be smaller.
    """
    rank = np.argsort(order)  # place in `order` of each row, in the source's own order
    held: list[tuple[np.ndarray, ...]] = []
    count = seen = 0
    labelled = rows.has_labels
    for inputs, labels in rows.batches(np.sort(order), size):
        n = len(inputs[0])
        held.append((rank[seen : seen + n], *inputs, *([labels] if labelled and labels is not None else [])))
        seen, count = seen + n, count + n
        values = sum(value[0].size for value in inputs)
        if count >= max(size, min(_WINDOW_ROWS, _WINDOW_VALUES // max(1, values))) and seen < len(order):
            window = _sorted(held)
            full = count // size * size
            yield from _cut(tuple(column[:full] for column in window), size, labelled)
            held, count = [tuple(column[full:] for column in window)], count - full
    if count:
        yield from _cut(_sorted(held), size, labelled)


def _sorted(held: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Columns of a window, by their first."""
    columns = [np.concatenate(column) for column in zip(*held, strict=True)]
    order = np.argsort(columns[0])
    return tuple(column[order] for column in columns)


def _cut(columns: tuple[np.ndarray, ...], size: int, labelled: bool) -> Iterator[Batch]:
    for start in range(0, len(columns[0]), size):
        _, *values = (column[start : start + size] for column in columns)
        yield (tuple(values[:-1]), values[-1]) if labelled else (tuple(values), None)
