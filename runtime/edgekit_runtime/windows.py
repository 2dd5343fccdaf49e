"""What a device tells of the live version, and of a candidate beside it: figures of a stretch of time that add up.

No input and no output leaves the device, only counts and sketches. A window has a key of its own: a server that hears
of it twice counts it once. Standard library only; device and server share these types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from edgekit_runtime.sketches import MAX_COUNT, Moments, Sketch, added, total
from edgekit_runtime.strict_json import (
    ContractError,
    Fields,
    check_choice,
    check_pattern,
    check_text,
    check_whole,
    is_real,
    parse,
    read_text,
    read_whole,
    show,
    within,
)

SCHEMA: Final = 1
TASKS: Final = ("classification", "regression", "detection", "embedding", "sequence")
# Pairs of labels that a device names in one window; the others are counted together.
MAX_PAIRS: Final = 32
MAX_MERGED_PAIRS: Final = 100_000

_ID: Final = re.compile(r"[0-9a-f]{64}")
_KEY: Final = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of what.

    Attributes:
        seen: predictions that the live version made.
        dropped: that were drawn for the comparison and found no room, or came while one was being handed over.
        compared: that both versions answered.
        agreed: of those, the answers that are the same for the task.
        live_nans: compared answers of the live version with NaN or infinity.
        nans: those of the candidate.
        errors: inputs that the candidate raised an error on.
        died: processes of the candidate that ended by themselves.
        hung: those that had to be ended.
        over_memory: those that took more than they may.
        hot_s: seconds in which nothing was compared because the device was too hot.
    """

    seen: int = 0
    dropped: int = 0
    compared: int = 0
    agreed: int = 0
    live_nans: int = 0
    nans: int = 0
    errors: int = 0
    died: int = 0
    hung: int = 0
    over_memory: int = 0
    hot_s: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            check_whole(each.name, getattr(self, each.name), 0, MAX_COUNT)

    def merged(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(*(total(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two versions.

    Attributes:
        latency_ms: milliseconds of its predictions.
        confidence: of its first choice, from 0 to 1, where the task has one.
    """

    latency_ms: Sketch = field(default_factory=Sketch)
    confidence: Sketch = field(default_factory=Sketch)

    def merged(self, other: Side) -> Side:
        """Both together."""
        return Side(self.latency_ms.merged(other.latency_ms), self.confidence.merged(other.confidence))


@dataclass(frozen=True, slots=True)
class Noise:
    """The live version against itself on the same input: what a difference is worth.

    Attributes:
        compared: how often.
        agreed: answers that were the same for the task.
        distance: between the answers.
        latency_ms: milliseconds of the copy of the live version, which runs where the candidate runs: in the same
            process, at the same priority. Beside it the candidate's latency says something of the candidate.
    """

    compared: int = 0
    agreed: int = 0
    distance: Sketch = field(default_factory=Sketch)
    latency_ms: Sketch = field(default_factory=Sketch)

    def __post_init__(self) -> None:
        check_whole("compared", self.compared, 0, MAX_COUNT)
        check_whole("agreed", self.agreed, 0, self.compared)

    def merged(self, other: Noise) -> Noise:
        """Both together."""
        return Noise(
            total(self.compared, other.compared),
            total(self.agreed, other.agreed),
            self.distance.merged(other.distance),
            self.latency_ms.merged(other.latency_ms),
        )


@dataclass(frozen=True, slots=True)
class Drift:
    """Values of an input, some of each that was compared.

    Attributes:
        moments: mean and variance.
        values: quantiles.
    """

    moments: Moments = field(default_factory=Moments)
    values: Sketch = field(default_factory=Sketch)

    def merged(self, other: Drift) -> Drift:
        """Both together."""
        return Drift(self.moments.merged(other.moments), self.values.merged(other.values))


@dataclass(frozen=True, slots=True)
class Figures:
    """All that is told of a pair of versions; figures of any two stretches of time or devices add up.

    Attributes:
        counts: how many of what.
        distance: between the answers, as the task measures it; 0 is the same.
        confusion: (label of the live version, label of the candidate) to count, where they are not the same.
        other_pairs: those whose pair is not named.
        live: the live version.
        candidate: the candidate.
        noise: the live version against itself.
        inputs: name to what was in it.
    """

    counts: Counts = field(default_factory=Counts)
    distance: Sketch = field(default_factory=Sketch)
    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict)
    other_pairs: int = 0
    live: Side = field(default_factory=Side)
    candidate: Side = field(default_factory=Side)
    noise: Noise = field(default_factory=Noise)
    inputs: Mapping[str, Drift] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_whole("other_pairs", self.other_pairs, 0, MAX_COUNT)
        check_whole("counts.agreed", self.counts.agreed, 0, self.counts.compared)
        if len(self.confusion) > MAX_MERGED_PAIRS:
            raise ContractError("confusion", f"{len(self.confusion)} pairs", f"at most {MAX_MERGED_PAIRS}")
        for pair, count in self.confusion.items():
            for label in pair:
                check_text("confusion", label)
            check_whole("confusion", count, 1, MAX_COUNT)
        for name in self.inputs:
            check_text("inputs", name, empty=False)

    def merged(self, other: Figures) -> Figures:
        """Both together; `a.merged(b) == b.merged(a)`."""
        names = sorted({*self.inputs, *other.inputs})
        none = Drift()
        return Figures(
            self.counts.merged(other.counts),
            self.distance.merged(other.distance),
            added(self.confusion, other.confusion),
            total(self.other_pairs, other.other_pairs),
            self.live.merged(other.live),
            self.candidate.merged(other.candidate),
            self.noise.merged(other.noise),
            {name: self.inputs.get(name, none).merged(other.inputs.get(name, none)) for name in names},
        )

    def shortened(self, pairs: int = MAX_PAIRS) -> Figures:
        """With the most frequent pairs of labels named, and the rest counted together."""
        ordered = sorted(self.confusion.items(), key=lambda item: (-item[1], item[0]))
        rest = sum(count for _, count in ordered[pairs:])
        return Figures(
            self.counts, self.distance, dict(ordered[:pairs]), total(self.other_pairs, rest),
            self.live, self.candidate, self.noise, self.inputs,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Window:
    """`window.json`: the figures of a stretch of time on one device.

    Where `candidate` is `live`, it tells of one process in which that release served, with nothing compared: `seen` are
    its predictions, `errors` those that raised, `live_nans` answers that were not finite, and `figures.live` has
    latencies and confidences of some.

    Attributes:
        key: of this window alone, hexadecimal.
        live: id of the release that served.
        candidate: id of the one beside it, or of the same.
        task: how answers were compared, one of `TASKS`.
        began_s: seconds since 1970 by the device's clock, which may be wrong.
        seconds: length, by a clock that nobody sets.
        figures: what happened in it.
    """

    key: str
    live: str
    candidate: str
    task: str
    began_s: int
    seconds: float
    figures: Figures

    def __post_init__(self) -> None:
        check_pattern("key", self.key, _KEY, "from 8 to 64 hexadecimal digits")
        for name in ("live", "candidate"):
            check_pattern(name, getattr(self, name), _ID, "64 hexadecimal digits")
        check_choice("task", self.task, TASKS)
        check_whole("began_s", self.began_s, 0, MAX_COUNT)
        if not is_real(self.seconds) or self.seconds < 0:
            raise ContractError("seconds", show(self.seconds), "a finite number, at least 0")

    @property
    def is_alone(self) -> bool:
        """Whether it tells of the version that serves, with none beside it."""
        return self.live == self.candidate

    def to_json(self) -> str:
        """Return the canonical document."""
        figures = self.figures
        tree = {
            "schema": SCHEMA,
            "key": self.key,
            "live": self.live,
            "candidate": self.candidate,
            "task": self.task,
            "began_s": self.began_s,
            "seconds": self.seconds,
            "counts": {each.name: getattr(figures.counts, each.name) for each in fields(Counts)},
            "distance": figures.distance.to_tree(),
            "confusion": [[*pair, count] for pair, count in sorted(figures.confusion.items())],
            "other_pairs": figures.other_pairs,
            "sides": {"live": _side_tree(figures.live), "candidate": _side_tree(figures.candidate)},
            "noise": {
                "compared": figures.noise.compared,
                "agreed": figures.noise.agreed,
                "distance": figures.noise.distance.to_tree(),
                "latency_ms": figures.noise.latency_ms.to_tree(),
            },
            "inputs": {
                name: {"moments": drift.moments.to_tree(), "values": drift.values.to_tree()}
                for name, drift in figures.inputs.items()
            },
        }
        return json.dumps(tree, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, document: str | bytes) -> Window:
        """Read a window.

        Args:
            document: the whole of it.

        Raises:
            ContractError: it breaks the contract; the error names the key.
        """
        top = Fields(parse(document), "", required=_KEYS)
        if (schema := top.whole("schema")) != SCHEMA:
            raise ContractError("schema", str(schema), f"{SCHEMA}; a newer version may read it")
        key, live, candidate, task = (top.text(key) for key in ("key", "live", "candidate", "task"))
        return cls(key, live, candidate, task, top.whole("began_s"), top.real("seconds"), _figures(top))


_KEYS: Final = (
    *("schema", "key", "live", "candidate", "task", "began_s", "seconds"),
    *("counts", "distance", "confusion", "other_pairs", "sides", "noise", "inputs"),
)


def _side_tree(side: Side) -> dict[str, Any]:
    return {"latency_ms": side.latency_ms.to_tree(), "confidence": side.confidence.to_tree()}


def _figures(top: Fields) -> Figures:
    sides = Fields(top.take("sides"), "sides", required=("live", "candidate"))
    noise = Fields(top.take("noise"), "noise", required=("compared", "agreed", "distance", "latency_ms"))
    pairs = top.each("confusion", _pair)
    confusion = dict(pairs)
    if len(confusion) < len(pairs):
        raise ContractError("confusion", "a pair that stands there twice", "each pair of labels once")
    inputs = {name: _drift(value, f"inputs.{name}") for name, value in top.mapping("inputs").items()}
    apart, took = (Sketch.from_tree(noise.take(key), f"noise.{key}") for key in ("distance", "latency_ms"))
    return Figures(
        _counts(top.take("counts")),
        Sketch.from_tree(top.take("distance"), "distance"),
        confusion,
        top.whole("other_pairs"),
        _side(sides.take("live"), "sides.live"),
        _side(sides.take("candidate"), "sides.candidate"),
        within("noise", lambda: Noise(noise.whole("compared"), noise.whole("agreed"), apart, took)),
        inputs,
    )


def _counts(value: object) -> Counts:
    names = [each.name for each in fields(Counts)]
    tree = Fields(value, "counts", required=names)
    found = [tree.whole(name) for name in names]
    return within("counts", lambda: Counts(*found))


def _side(value: object, path: str) -> Side:
    tree = Fields(value, path, required=("latency_ms", "confidence"))
    return Side(*(Sketch.from_tree(tree.take(key), f"{path}.{key}") for key in ("latency_ms", "confidence")))


def _drift(value: object, path: str) -> Drift:
    tree = Fields(value, path, required=("moments", "values"))
    return Drift(
        Moments.from_tree(tree.take("moments"), f"{path}.moments"),
        Sketch.from_tree(tree.take("values"), f"{path}.values"),
    )


def _pair(value: object, path: str) -> tuple[tuple[str, str], int]:
    if not isinstance(value, list) or len(value) != 3:
        raise ContractError(path, show(value), "two labels and a count")
    return (read_text(value[0], path), read_text(value[1], path)), read_whole(value[2], path)
