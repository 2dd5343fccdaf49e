"""Inputs whose answers differ: some of a window's, each with the same chance, within bounds of memory."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import numpy as np

from edgekit_runtime import payloads
from edgekit_runtime.backends import Array
from edgekit_runtime.shadow.comparators import Answer, Difference
from edgekit_runtime.shadow.settings import Shadow
from edgekit_runtime.spool import Spool
from edgekit_runtime.store import Store

log = logging.getLogger(__name__)

SCHEMA: Final = 1
# Of both answers together; what is larger, such as a mask, would crowd the inputs out.
SMALL_BYTES: Final = 64 << 10
MAX_LABEL: Final = 256

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Keeps some of any number of things, each with the same chance (Vitter 1985, Algorithm R).

    Args:
        size: that are kept at most.
        chance: draws whole numbers below another.
    """

    def __init__(self, size: int, chance: Callable[[int], int] = random.randrange) -> None:
        self.size, self.seen, self.kept = size, 0, list[T]()
        self._chance = chance

    def offer(self, make: Callable[[], T]) -> None:
        """Count one more; it is only made where it is kept."""
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(make())
        elif self.size and (at := self._chance(self.seen)) < self.size:
            self.kept[at] = make()


@dataclass(frozen=True, slots=True)
class Sample:
    """An input and both answers to it.

    Attributes:
        inputs: by name, with a batch axis of one.
        live: outputs of the live version by name; none where they are large.
        candidate: likewise.
        labels: that they chose, "" where the task has none.
        confidence: of these, None where the task has none.
        at_s: seconds since 1970 by the clock of the device.
        key: by which the server knows it.
    """

    inputs: Mapping[str, Array]
    live: Mapping[str, Array]
    candidate: Mapping[str, Array]
    labels: tuple[str, str]
    confidence: tuple[float, float] | None
    at_s: int
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


class Sampler:
    """Samples of a window that is open.

    Args:
        wanted: of a window; 0 for none.
        sample_bytes: of one at most.
        all_bytes: of all of them together.
        label: name of a class.
    """

    def __init__(self, wanted: int, sample_bytes: int, all_bytes: int, label: Callable[[int], str]) -> None:
        self._wanted, self._sample_bytes, self._all_bytes, self._label = (
            wanted,
            sample_bytes,
            all_bytes,
            label,
        )
        self._reservoir = Reservoir[Sample](wanted)

    def differed(
        self, inputs: Answer, live: Answer, candidate: Answer, difference: Difference | None
    ) -> None:
        """A sample whose answers differ, or of which the candidate's alone is not finite.

        Args:
            inputs: by name; they are copied where they are kept.
            live: answer.
            candidate: answer.
            difference: of both, None where one is not finite.
        """
        if not self._wanted:
            return
        small = _bytes(live) + _bytes(candidate) <= SMALL_BYTES
        size = _bytes(inputs) + (_bytes(live) + _bytes(candidate) if small else 0)
        if size > self._sample_bytes:
            return
        # Samples of a model are all of one size.
        self._reservoir.size = min(self._wanted, self._all_bytes // max(1, size))
        labels = difference.labels if difference is not None else None
        self._reservoir.offer(
            lambda: Sample(
                _copies(inputs), _copies(live) if small else {}, _copies(candidate) if small else {},
                (self._label(labels[0])[:MAX_LABEL], self._label(labels[1])[:MAX_LABEL]) if labels else ("", ""),
                difference.confidence if difference is not None else None, max(0, int(time.time())),
            )
        )  # fmt: skip

    @property
    def samples(self) -> tuple[Sample, ...]:
        """That are kept."""
        return tuple(self._reservoir.kept)


class Keeper:
    """Puts samples where the agent finds them, for as long as the device and a signed policy let it.

    Args:
        store: of the device.
        names: ids of the live release and the candidate.
        settings: of the shadow.
    """

    def __init__(self, store: Store, names: tuple[str, str], settings: Shadow) -> None:
        self._store, self._names, self._settings = store, names, settings

    def wanted(self) -> int:
        """How many samples of a window may be kept now."""
        if not self._settings.payload or payloads.vetoed():
            return 0
        return payloads.load(self._store.path).of(self._names[1])

    def put(self, samples: Sequence[Sample]) -> None:
        """Let samples wait for the agent; those that find no room are lost."""
        if not samples or not self.wanted():
            return
        try:
            spool = Spool(self._store.payloads, max_bytes=self._settings.payloads_bytes)
            for each in samples:
                spool.put(each.key, document(each, *self._names))
        except OSError as error:
            log.warning("inputs whose answers differ could not be kept: %s", error)


def document(sample: Sample, live: str, candidate: str) -> bytes:
    """A sample as it waits for the agent: JSON, with its arrays as a `.npz` in base64.

    Args:
        sample: of a window.
        live: id of the release that served.
        candidate: id of the one beside it.
    """
    arrays: dict[str, Array] = {f"input/{name}": value for name, value in sample.inputs.items()}
    arrays |= {f"live/{name}": value for name, value in sample.live.items()}
    arrays |= {f"candidate/{name}": value for name, value in sample.candidate.items()}
    if sample.confidence is not None:
        arrays["confidence"] = np.array(sample.confidence, np.float64)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type] # names of arrays are no options
    tree = {
        "schema": SCHEMA, "key": sample.key, "live": live, "candidate": candidate, "labels": list(sample.labels),
        "at_s": sample.at_s, "payload": base64.b64encode(packed.getvalue()).decode("ascii"),
    }  # fmt: skip
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "replace")


def _copies(arrays: Answer) -> dict[str, Array]:
    return {name: np.array(value) for name, value in arrays.items()}


def _bytes(arrays: Answer) -> int:
    return sum(value.nbytes for value in arrays.values())
