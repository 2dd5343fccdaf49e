"""Figures for Prometheus, in its text format (version 0.0.4).

Standard library alone: the format is a few lines, and its client library is larger than this whole package.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

# Upper ends in seconds, from a keyword spotter on a phone to a segmenter on a microcomputer.
BUCKETS_S: Final = (
    *(5e-05, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)


@dataclass(frozen=True, slots=True)
class Family:
    """Figures of one name.

    Attributes:
        name: in the terms of Prometheus, with its unit.
        kind: "counter", "gauge" or "histogram".
        text: what it is.
        samples: (suffix of the name, labels, value).
    """

    name: str
    kind: str
    text: str
    samples: tuple[tuple[str, Mapping[str, str], float], ...]


class Meter:
    """Counts predictions and how long they took. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum_s, self._errors, self._swaps = 0.0, 0, 0

    def took(self, seconds: float) -> None:
        """A prediction ended well."""
        place = bisect_left(BUCKETS_S, seconds)
        with self._lock:
            self._counts[place] += 1
            self._sum_s += seconds

    def failed(self) -> None:
        """A prediction raised."""
        with self._lock:
            self._errors += 1

    def swapped(self) -> None:
        """Another version serves."""
        with self._lock:
            self._swaps += 1

    def families(self) -> tuple[Family, ...]:
        """All of it."""
        with self._lock:
            counts, total_s, errors, swaps = list(self._counts), self._sum_s, self._errors, self._swaps
        below, samples = 0, []
        for end, count in zip((*BUCKETS_S, float("inf")), counts, strict=True):
            below += count
            samples.append(("_bucket", {"le": _number(end)}, float(below)))
        samples += [("_sum", {}, total_s), ("_count", {}, float(below))]
        return (
            Family("edgekit_prediction_seconds", "histogram", "Time of a prediction.", tuple(samples)),
            counter("edgekit_prediction_errors_total", "Predictions that raised an error.", errors),
            counter("edgekit_swaps_total", "Times that another version began to serve.", swaps),
        )


def counter(name: str, text: str, value: float, labels: Mapping[str, str] | None = None) -> Family:
    """A figure that only grows."""
    return Family(name, "counter", text, (("", labels or {}, float(value)),))


def gauge(name: str, text: str, value: float, labels: Mapping[str, str] | None = None) -> Family:
    """A figure that comes and goes."""
    return Family(name, "gauge", text, (("", labels or {}, float(value)),))


def render(families: Iterable[Family]) -> str:
    """In the text format."""
    lines = []
    for each in families:
        lines += [f"# HELP {each.name} {each.text}", f"# TYPE {each.name} {each.kind}"]
        for suffix, labels, value in each.samples:
            inner = ",".join(f'{key}="{_escaped(said)}"' for key, said in labels.items())
            braced = f"{{{inner}}}" if inner else ""
            lines.append(f"{each.name}{suffix}{braced} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return "+Inf" if value == float("inf") else f"{value:.10g}"
