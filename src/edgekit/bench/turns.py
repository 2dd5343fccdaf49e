"""Times calls on a machine that is not always as quick.

All take turns. What disturbs a single turn only ever adds time, so that the lower quartile counts.

Where something else works on the same core, kernels take up to twice as long for seconds, and the clock goes up and
down. A known call, the yardstick, runs between the turns: for moments in which it is about as quick as it has ever been
seen everything waits, and what is left of the difference is taken off.
"""

from __future__ import annotations

import gc
import math
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

Run = Callable[[], None]

# A time is settled after so many turns when their lower quartile and their median are this near, or when there were
# too many.
TURNS: Final = 6
AGREEMENT: Final = 1.03
MOST_ROUNDS: Final = 40
# The machine is quiet when the yardstick is within this share of its best. The clock alone makes a sixth; company on
# the same core makes two thirds and more.
QUIET: Final = 1.3
# Single turns of the yardstick are lucky: its best is what so many of them do not reach.
LUCKY: Final = 0.05
# Where the yardstick takes x times as long, other layers and operators take x to this power, in the median of those
# looked at (0.8 in ONNX Runtime, 0.7 in LiteRT; a tenth of them below 0.5 and above 1.1).
SHARED: Final = 0.8
# A batch waits so long for quiet, looking again after every pause.
WAIT_S: Final = 2.0
PAUSE_S: Final = 0.005
WARM_UP: Final = 3
# A turn is long against the first call in it, which finds the caches full of the others' data.
TURN_NS: Final = 200_000
MOST_CALLS: Final = 64
# One call brings the data of an operator near. Thousands of operators have more than that in caches and branch
# predictors: their second call takes 1.4 times as long as their fourth. What takes longer than this has little of it.
WARM_NS: Final = 2_000_000


@dataclass(frozen=True, slots=True)
class Timed:
    """What came of runs that took turns.

    Attributes:
        ms: of one call of each.
        yardstick_ms: what the first of them took in the best moments meanwhile.
    """

    ms: tuple[float, ...]
    yardstick_ms: float


def undisturbed(
    runs: Sequence[Run], best_ms: float | None, *, turns: int = TURNS, warm: int = 1, wait_s: float = WAIT_S
) -> Timed:
    """`_Turns` with the garbage collector off."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _Turns(runs, best_ms, turns, warm, wait_s).timed()
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn, and what the yardstick took right before and after it; all in milliseconds."""

    took: float
    before: float
    after: float

    def as_at(self, best_ms: float) -> float:
        """What it would have taken where the yardstick takes so long."""
        return self.took * math.pow(best_ms / math.sqrt(self.before * self.after), SHARED)


class _Turns:
    """Runs that take turns, and what they took.

    Args:
        runs: the first is the yardstick.
        best_ms: what the yardstick took in the best moments before, None where that is not known.
        turns: that each has at least.
        warm: calls before each turn, or as many of them as begin within `WARM_NS`.
        wait_s: for quiet, altogether.
    """

    def __init__(
        self, runs: Sequence[Run], best_ms: float | None, turns: int, warm: int, wait_s: float
    ) -> None:
        self.runs, self.calls, self.least = runs, [_calls(run) for run in runs], turns
        self.warm = warm
        self.taken: list[list[_Turn]] = [[] for _ in runs]
        # Ascending.
        self.yardsticks: list[float] = []
        self.known_ms = math.inf if best_ms is None else best_ms
        self.until = time.monotonic() + wait_s
        for _ in range(self.least):
            self.last_ms = self._yardstick()
            time.sleep(PAUSE_S)

    def timed(self) -> Timed:
        """Everything, when it is settled."""
        for index in range(MOST_ROUNDS):
            unsettled = [i for i in range(len(self.runs)) if not self._settled(i)]
            if not unsettled:
                break
            # Whoever comes last in one round comes first in the next.
            for i in unsettled[:: -1 if index % 2 else 1]:
                self._take(i)
        quickest = [float(np.quantile(self._counted(turns), 0.25)) for turns in self.taken]
        return Timed(tuple(quickest), self._own_best())

    def _take(self, i: int) -> None:
        self._await_quiet()
        before, took = self.last_ms, _turn(self.runs[i], self.calls[i], self.warm)
        self.last_ms = self._yardstick()
        self.taken[i].append(_Turn(took, before, self.last_ms))

    def _await_quiet(self) -> None:
        limit = QUIET * self._best()
        while self.last_ms > limit and time.monotonic() < self.until:
            time.sleep(PAUSE_S)
            self.last_ms = self._yardstick()

    def _settled(self, i: int) -> bool:
        turns = self.taken[i]
        if time.monotonic() < self.until:
            turns = self._quiet(turns)
        return len(turns) >= self.least and _agree(self._counted(turns))

    def _counted(self, turns: Sequence[_Turn]) -> list[float]:
        """Times of the quiet turns, and of the least loud where these are few."""
        by_loudness = sorted(turns, key=lambda turn: max(turn.before, turn.after))
        n, best_ms = max(self.least, len(self._quiet(turns))), self._best()
        return [turn.as_at(best_ms) for turn in by_loudness[:n]]

    def _quiet(self, turns: Sequence[_Turn]) -> list[_Turn]:
        limit = QUIET * self._best()
        return [turn for turn in turns if max(turn.before, turn.after) <= limit]

    def _best(self) -> float:
        return min(self.known_ms, self._own_best())

    def _own_best(self) -> float:
        return self.yardsticks[int(LUCKY * len(self.yardsticks))]

    def _yardstick(self) -> float:
        took = _turn(self.runs[0], self.calls[0])
        insort(self.yardsticks, took)
        return took


def _agree(turns: Sequence[float]) -> bool:
    quartile, median = np.quantile(turns, (0.25, 0.5))
    return bool(median <= quartile * AGREEMENT)


def _turn(run: Run, calls: int, warm: int = 1) -> float:
    """Milliseconds of one call, after some that bring near what it needs."""
    began = time.perf_counter_ns()
    for _ in range(warm):
        run()
        if time.perf_counter_ns() - began > WARM_NS:
            break
    started = time.perf_counter_ns()
    for _ in range(calls):
        run()
    return (time.perf_counter_ns() - started) / calls / 1e6


def _calls(run: Run) -> int:
    """Calls in a turn; the first few warm up."""
    fastest = float("inf")
    for _ in range(WARM_UP):
        started = time.perf_counter_ns()
        run()
        fastest = min(fastest, time.perf_counter_ns() - started)
    return int(np.clip(TURN_NS / max(fastest, 1), 1, MOST_CALLS))
