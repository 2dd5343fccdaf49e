"""Batches from the user's own code."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.data.rows import Batch, Inputs, Rows, Sets, digest_of
from edgekit.errors import UsageError
from edgekit.usercode import imported
from edgekit_converters.program import TensorInfo

Source = Callable[[], Iterable[Any]]


def user_source(spec: str) -> Source:
    """The source behind "module:callable".

    Raises:
        UsageError: it cannot be imported or is not callable.
    """
    return imported(
        spec,
        named=f"--data {spec}",
        expected="a callable without arguments that yields batches: x, or (x, y)",
        way_out="Write a generator function and pass it as module:function.",
    )


def open_stream(source: Source, inputs: Sequence[TensorInfo], where: str) -> Sets:
    """Count the samples of a source by one pass; every later pass calls it again.

    Args:
        source: called without arguments; gives an iterable of batches.
        inputs: of the model.
        where: for messages.

    Raises:
        UsageError: the source raises, or its batches are not arrays.
    """
    count, labelled = 0, False
    for x, y in _passes(source, inputs, where):
        count += len(x[0])
        labelled = y is not None

    def batches(order: np.ndarray, size: int) -> Iterator[Batch]:
        wanted = set(order.tolist())
        position = 0
        for x, y in _passes(source, inputs, where):
            rows = [i for i in range(len(x[0])) if position + i in wanted]
            position += len(x[0])
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                yield tuple(v[part] for v in x), None if y is None else y[part]
        if position != count:
            raise UsageError(
                f"{where}: gave {count} samples on the first pass and {position} on a later one",
                expected="the same samples on every call",
                way_out="Seed it, and make a new iterator on every call.",
            )

    def prints(order: np.ndarray) -> set[bytes]:
        found = set()
        for x, _ in batches(order, 256):
            for i in range(len(x[0])):
                digest = hashlib.blake2b(digest_size=16)
                for value in x:
                    digest.update(np.ascontiguousarray(value[i]).tobytes())
                found.add(digest.digest())
        return found

    return Sets(
        None,
        Rows(
            count,
            batches,
            labelled,
            where,
            "sample {} of the stream".format,
            prints,
            digest=lambda order: digest_of(batches(order, 256)),
            any_order=False,
        ),
    )


def _passes(source: Source, inputs: Sequence[TensorInfo], where: str) -> Iterator[Batch]:
    try:
        for batch in source():
            yield _split(batch, inputs, where)
    except UsageError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UsageError(
            f"{where}: raised {type(error).__name__}: {error}",
            expected="batches, x or (x, y)",
            way_out="Run it by itself and mend it.",
        ) from error


def _split(batch: Any, inputs: Sequence[TensorInfo], where: str) -> Batch:
    """(inputs, labels) of whatever a batch is."""
    if isinstance(batch, Mapping):
        if all(info.name in batch for info in inputs):
            labels = batch.get("y", batch.get("labels"))
            return tuple(_array(batch[i.name]) for i in inputs), None if labels is None else _array(labels)
        batch = (batch.get("x"), batch["y"]) if "y" in batch else batch.get("x")
    if isinstance(batch, (tuple, list)):
        if len(batch) == 2 and not _are_inputs(batch, inputs):
            return _inputs(batch[0], inputs, where), None if batch[1] is None else _array(batch[1])
        return _inputs(tuple(batch), inputs, where), None
    return _inputs(batch, inputs, where), None


def _are_inputs(batch: Sequence[Any], inputs: Sequence[TensorInfo]) -> bool:
    """Two things are two inputs only if the second has the shape of the second input."""
    if len(inputs) != 2 or isinstance(batch[0], (tuple, list, Mapping)):
        return False
    return _array(batch[1]).shape[1:] == inputs[1].shape[1:]


def _inputs(value: Any, inputs: Sequence[TensorInfo], where: str) -> Inputs:
    values = tuple(value) if isinstance(value, (tuple, list)) and len(inputs) > 1 else (value,)
    if isinstance(value, (tuple, list)) and len(inputs) == 1 and len(value) == 1:
        values = tuple(value)
    if len(values) != len(inputs) or any(v is None for v in values):
        raise UsageError(
            f"{where}: a batch has {len(values)} inputs",
            expected=f"{len(inputs)}: {', '.join(info.name for info in inputs)}",
            way_out="Yield x, (x, y), or ((x1, x2), y) for a model with several inputs.",
        )
    return tuple(_array(v) for v in values)


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise TypeError(f"a batch holds {array.dtype} of shape {array.shape}, not numbers with a batch axis")
    return array
