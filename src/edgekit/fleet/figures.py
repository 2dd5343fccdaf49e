"""How figures of one device, and of all devices in a minute, are kept: packed windows, which add up."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from edgekit.fleet.evidence import Observation
from edgekit.fleet.posts import PACKING
from edgekit_runtime.windows import Figures, Side, Window

# Pairs of labels that are kept by name.
MAX_PAIRS: Final = 512
_NO_KEY, _NO_ID, _TASK = "0" * 8, "0" * 64, "classification"
# Of the candidate's process, each worth a device that failed.
_FAULTS: Final = ("died", "hung", "over_memory")


def packed(window: Window) -> bytes:
    """A window in bytes."""
    return zlib.compress(window.to_json().encode(), PACKING)


def unpacked(document: bytes) -> Window:
    """It again."""
    return Window.from_json(zlib.decompress(document))


def added(window: Window, figures: Figures, seconds: float) -> Window:
    """A window with more in it."""
    joined = window.figures.merged(figures)
    if len(joined.confusion) > MAX_PAIRS:
        joined = joined.shortened(MAX_PAIRS)
    # Times that no double can add up to are somebody's joke.
    return replace(window, figures=joined, seconds=min(window.seconds + seconds, 1e15))


@dataclass(frozen=True, slots=True)
class Shown:
    """All that one device has shown of one rollout.

    Attributes:
        pair: the release beside the version before.
        serving: the release alone.
        before: the version before alone; only how long it takes.
    """

    pair: Figures = field(default_factory=Figures)
    serving: Figures = field(default_factory=Figures)
    before: Figures = field(default_factory=Figures)

    def with_figures(self, part: str, figures: Figures) -> Shown:
        """With more of one part.

        Args:
            part: "pair", "serving" or "before".
            figures: to be added.
        """
        if part == "before":
            figures = Figures(live=Side(figures.live.latency_ms))
        joined = getattr(self, part).merged(figures)
        # Which labels were mistaken is told by all devices together.
        return replace(self, **{part: joined.shortened(0)})

    def observations(self) -> dict[str, Observation]:
        """Part to what it comes to, of those of which there is any."""
        found = {}
        if self.pair.counts.compared + self.pair.counts.errors:
            found["pair"] = Observation.of_pair(self.pair)
        if self.serving.counts.seen:
            before = self.before.live.latency_ms.merged(self.pair.live.latency_ms)
            found["serving"] = Observation.of_serving(self.serving, before)
        return found

    @property
    def fault(self) -> str:
        """Why the release did not run here beside the version before, "" where it did."""
        return next((name for name in _FAULTS if getattr(self.pair.counts, name)), "")

    def to_bytes(self) -> bytes:
        """Packed."""
        parts = (self.pair, self.serving, self.before)
        return zlib.compress("\n".join(_line(each) for each in parts).encode(), PACKING)

    @classmethod
    def from_bytes(cls, document: bytes) -> Shown:
        """Read it back; of nothing it is nothing."""
        if not document:
            return cls()
        # JSON itself has no line ends: its text has none but escaped.
        lines = zlib.decompress(document).decode().split("\n")
        return cls(*(Window.from_json(line).figures if line else Figures() for line in lines))


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


def _line(figures: Figures) -> str:
    if figures == Figures():
        return ""
    return Window(_NO_KEY, _NO_ID, _NO_ID, _TASK, 0, 0.0, figures).to_json()


def _tree(observation: Observation) -> dict[str, Any]:
    # JSON has no NaN.
    return {name: None if value != value else value for name, value in asdict(observation).items()}  # noqa: PLR0124


def _observation(tree: Mapping[str, Any]) -> Observation:
    values: dict[str, Any] = {name: math.nan if value is None else value for name, value in tree.items()}
    return Observation(**values)
