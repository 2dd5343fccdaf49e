"""How figures of one device, and of all devices in a minute, are added up and kept: packed windows.

`Sum` adds the plain trees of windows, since `edgekit_runtime.windows` checks each number whenever two figures are
merged. That is sound for windows that were checked when they came in, and for what this server wrote itself.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pydantic_core import from_json, to_json

from edgekit.fleet.rules.evidence import Observation
from edgekit.fleet.windows.posts import PACKING
from edgekit_runtime.sketches import MAX_COUNT, Moments, Sketch, total
from edgekit_runtime.windows import SCHEMA, Counts, Drift, Figures, Noise, Side, Window

# Pairs of labels that are kept by name, and inputs: few and short enough that a sum stays a window of lawful size,
# whatever names a device makes up.
MAX_PAIRS: Final = 512
MAX_INPUTS: Final = 32
MAX_LABEL: Final = 256
# Times that no double can add up to are somebody's joke.
MAX_SECONDS: Final = 1e15
_NO_KEY, _NO_ID, _TASK = "0" * 8, "0" * 64, "classification"
# Of the candidate's process, each worth a device that failed.
_FAULTS: Final = ("died", "hung", "over_memory")

Tree = Mapping[str, Any]
"""A window, or what `Sum.tree` gives of one, as plain JSON values."""


def packed(window: Window) -> bytes:
    """A window in bytes."""
    return zlib.compress(window.to_json().encode(), PACKING)


def unpacked(document: bytes) -> Window:
    """It again."""
    return Window.from_json(zlib.decompress(document))


def tree_of(document: bytes) -> Tree:
    """A window that this server packed, as `Sum.add` takes it; not checked again."""
    tree: Tree = from_json(zlib.decompress(document))
    return tree


class Sum:
    """Figures that are added up in place: the same as `Figures.merged` of them all, in any order.

    Attributes:
        windows: that are in it.
        seconds: that they are of, together.
        task: of the first of them.
    """

    __slots__ = (
        "_confusion",
        "_counts",
        "_inputs",
        "_noise",
        "_other_pairs",
        "_sketches",
        "seconds",
        "task",
        "windows",
    )

    def __init__(self) -> None:
        self.windows, self.seconds, self.task = 0, 0.0, _TASK
        self._counts: dict[str, int] = {}
        self._noise = [0, 0]
        self._sketches = [_Bins() for _ in range(7)]
        self._confusion: dict[tuple[str, str], int] = {}
        self._other_pairs = 0
        self._inputs: dict[str, tuple[Moments, _Bins]] = {}

    def add(self, tree: Tree, windows: int = 1) -> None:
        """Add a window, or another sum.

        Args:
            tree: of it; not changed, and nothing of it is kept.
            windows: that are in it.
        """
        if not self.windows:
            self.task = tree["task"]
        self.windows += windows
        self.seconds = min(self.seconds + tree["seconds"], MAX_SECONDS)
        _add(self._counts, tree["counts"])
        self._noise = [self._noise[0] + tree["noise"]["compared"], self._noise[1] + tree["noise"]["agreed"]]
        for bins, more in zip(self._sketches, _sketches(tree), strict=True):
            bins.add(more)
        for live, candidate, count in tree["confusion"]:
            pair = live, candidate
            self._confusion[pair] = self._confusion.get(pair, 0) + count
        self._other_pairs += tree["other_pairs"]
        for name, drift in tree["inputs"].items():
            moments, bins = self._inputs.get(name) or (Moments(), _Bins())
            bins.add(drift["values"])
            self._inputs[name] = moments.merged(Moments(**drift["moments"])), bins

    def tree(self, pairs: int = MAX_PAIRS) -> Tree:
        """All of it as plain values, within the bounds of a window.

        Args:
            pairs: of labels that are named, the most frequent; others are counted together.
        """
        named = [item for item in self._confusion.items() if max(map(len, item[0])) <= MAX_LABEL]
        named = sorted(named, key=lambda item: (-item[1], item[0]))[:pairs]
        rest = sum(self._confusion.values()) - sum(count for _, count in named)
        inputs = sorted(self._inputs.items(), key=lambda item: (-item[1][0].n, item[0]))[:MAX_INPUTS]
        distance, noise, took, *sides = (bins.tree() for bins in self._sketches)
        return {
            "task": self.task,
            "seconds": self.seconds,
            "counts": _bounded({name: self._counts.get(name, 0) for name in _COUNTS}),
            "distance": distance,
            "confusion": [(*pair, min(count, MAX_COUNT)) for pair, count in named],
            "other_pairs": total(self._other_pairs, rest),
            "sides": {
                "live": {"latency_ms": sides[0], "confidence": sides[1]},
                "candidate": {"latency_ms": sides[2], "confidence": sides[3]},
            },
            "noise": {
                "compared": min(self._noise[0], MAX_COUNT),
                "agreed": min(self._noise[1], MAX_COUNT),
                "distance": noise,
                "latency_ms": took,
            },
            "inputs": {
                name: {"moments": moments.to_tree(), "values": bins.tree()} for name, (moments, bins) in inputs
            },
        }  # fmt: skip

    def to_figures(self) -> Figures:
        """All of it as figures, checked."""
        tree = self.tree()
        distance, noise, took, *sides = map(_sketch, _sketches(tree))
        return Figures(
            Counts(**tree["counts"]),
            distance,
            {(live, candidate): count for live, candidate, count in tree["confusion"]},
            tree["other_pairs"],
            Side(*sides[:2]),
            Side(*sides[2:]),
            Noise(tree["noise"]["compared"], tree["noise"]["agreed"], noise, took),
            {
                name: Drift(Moments(**drift["moments"]), _sketch(drift["values"]))
                for name, drift in tree["inputs"].items()
            },
        )

    def to_json(
        self, *, live: str = _NO_ID, candidate: str = _NO_ID, began_s: int = 0, pairs: int = MAX_PAIRS
    ) -> bytes:
        """All of it as the document of one window.

        Args:
            live: id of the release that served.
            candidate: of the one beside it.
            began_s: seconds since 1970.
            pairs: as in `tree`.
        """
        head = {"schema": SCHEMA, "key": _NO_KEY, "live": live, "candidate": candidate, "began_s": began_s}
        return to_json({**head, **self.tree(pairs)})

    def to_bytes(self, *, live: str, candidate: str, began_s: int) -> bytes:
        """As `to_json`, packed."""
        return zlib.compress(self.to_json(live=live, candidate=candidate, began_s=began_s), PACKING)


class _Bins:
    """A `Sketch` that grows; its bins under their names."""

    __slots__ = ("above", "below", "zeros")

    def __init__(self) -> None:
        self.below: dict[str, int] = {}
        self.zeros = 0
        self.above: dict[str, int] = {}

    def add(self, tree: Tree) -> None:
        _add(self.below, tree["below"])
        self.zeros += tree["zeros"]
        _add(self.above, tree["above"])

    def tree(self) -> Tree:
        return {
            "below": _bounded(self.below),
            "zeros": min(self.zeros, MAX_COUNT),
            "above": _bounded(self.above),
        }


_COUNTS: Final = tuple(asdict(Counts()))


def _sketches(tree: Tree) -> tuple[Tree, ...]:
    live, candidate = tree["sides"]["live"], tree["sides"]["candidate"]
    return (
        *(tree["distance"], tree["noise"]["distance"], tree["noise"]["latency_ms"]),
        *(live["latency_ms"], live["confidence"], candidate["latency_ms"], candidate["confidence"]),
    )


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    if not counts:
        counts.update(more)
        return
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count


def _bounded(counts: dict[str, int]) -> dict[str, int]:
    """Counts up to the largest that a window has; Python's own sums have no end."""
    if max(counts.values(), default=0) <= MAX_COUNT:
        return counts
    return {name: min(count, MAX_COUNT) for name, count in counts.items()}


def _sketch(tree: Tree) -> Sketch:
    below, above = ({int(number): count for number, count in tree[key].items()} for key in ("below", "above"))
    return Sketch(below, tree["zeros"], above)


_NOTHING: Final = Sum().tree()


@dataclass(slots=True, eq=False)
class Shown:
    """All that one device has shown of one rollout.

    Attributes:
        pair: the release beside the version before.
        serving: the release alone.
        before: the version before alone; only how long it takes.
        control: the version before alone, while the device is of the control of an A/B comparison.
    """

    pair: Sum = field(default_factory=Sum)
    serving: Sum = field(default_factory=Sum)
    before: Sum = field(default_factory=Sum)
    control: Sum = field(default_factory=Sum)

    def add(self, part: str, tree: Tree) -> None:
        """Add to one part.

        Args:
            part: "pair", "serving", "before" or "control".
            tree: of a window or a sum.
        """
        if part == "before":
            live = {**_NOTHING["sides"]["live"], "latency_ms": tree["sides"]["live"]["latency_ms"]}
            tree = {**_NOTHING, "sides": {**_NOTHING["sides"], "live": live}}
        into: Sum = getattr(self, part)
        into.add(tree)

    def observations(self) -> dict[str, Observation]:
        """Part to what it comes to, of those of which there is any."""
        found, pair = {}, self.pair.to_figures()
        if pair.counts.compared + pair.counts.errors:
            found["pair"] = Observation.of_pair(pair)
        if self.serving.windows and (serving := self.serving.to_figures()).counts.seen:
            before = self.before.to_figures().live.latency_ms.merged(pair.live.latency_ms)
            found["serving"] = Observation.of_serving(serving, before)
        if self.control.windows and (control := self.control.to_figures()).counts.seen:
            found["control"] = Observation.of_serving(control, control.live.latency_ms)
        return found

    @property
    def counts(self) -> Counts:
        """Of the pair."""
        return Counts(**self.pair.tree()["counts"])

    @property
    def fault(self) -> str:
        """Why the release did not run here beside the version before, "" where it did."""
        return next((name for name in _FAULTS if getattr(self.counts, name)), "")

    def to_bytes(self) -> bytes:
        """Packed. Which labels were mistaken is told by all devices together."""
        parts = (self.pair, self.serving, self.before, self.control)
        lines = (each.to_json(pairs=0) if each.windows else b"" for each in parts)
        return zlib.compress(b"\n".join(lines), PACKING)

    @classmethod
    def from_bytes(cls, document: bytes) -> Shown:
        """Read it back; of nothing it is nothing."""
        shown = cls()
        if document:
            parts = (shown.pair, shown.serving, shown.before, shown.control)
            # JSON itself has no line ends: its text has none but escaped.
            for part, line in zip(parts, zlib.decompress(document).split(b"\n"), strict=True):
                if line:
                    part.add(from_json(line))
        return shown


@dataclass(frozen=True, slots=True)
class Judged:
    """What is kept of an observation, for the gates.

    Attributes:
        place: in the order in which devices had shown enough; 0 before it.
        first: frozen at that moment.
        now: of all that it has shown.
    """

    place: int
    first: Observation
    now: Observation

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"place": self.place, "first": _tree(self.first), "now": _tree(self.now)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Judged:
        """Read it back."""
        return cls(int(tree["place"]), _observation(tree["first"]), _observation(tree["now"]))


def _tree(observation: Observation) -> dict[str, Any]:
    # JSON has no NaN.
    return {name: None if value != value else value for name, value in asdict(observation).items()}  # noqa: PLR0124


def _observation(tree: Mapping[str, Any]) -> Observation:
    values: dict[str, Any] = {name: math.nan if value is None else value for name, value in tree.items()}
    return Observation(**values)
