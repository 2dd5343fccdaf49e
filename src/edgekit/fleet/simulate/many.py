"""The same rollout again and again, by other devices and other chance: how often it is stopped, and how late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

from edgekit.fleet.rules import rollouts
from edgekit.fleet.rules.gates import FAIL, HOLD
from edgekit.fleet.rules.rollouts import Plan
from edgekit.fleet.simulate.run import History, run
from edgekit.fleet.simulate.world import World


@dataclass(frozen=True, slots=True)
class Summary:
    """Of many rollouts.

    Attributes:
        runs: how many.
        completed: share that came through.
        failed: share that a gate stopped.
        held: share that waits for a person, because no verdict came in time.
        looks: of all rollouts together.
        exposed: median share of the cohort that served the release.
        exposed_p90: share that nine of ten rollouts did not exceed.
        touched: median share that ran it, in the shadow or serving.
        seconds: median length.
        places: where those that did not come through ended, such as "10% shadow", to their number.
        gates: that failed, or had no verdict at the end, to the number of rollouts.
        kept: devices that ran a stopped release although they had polled, all together.
    """

    runs: int
    completed: float
    failed: float
    held: float
    looks: int
    exposed: float
    exposed_p90: float
    touched: float
    seconds: float
    places: Mapping[str, int]
    gates: Mapping[str, int]
    kept: int

    @property
    def stopped(self) -> float:
        """Share that went no further, by a gate or for want of a verdict."""
        return self.failed + self.held

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is kept of a history.

    Attributes:
        state: at the end.
        place: where it ended.
        looks: how many.
        seconds: length.
        exposed: share of the cohort that served it.
        touched: share that ran it.
        gates: that failed, or had no verdict at the end.
        kept: as in `History`.
    """

    state: str
    place: str
    looks: int
    seconds: int
    exposed: float
    touched: float
    gates: tuple[str, ...]
    kept: int

    @classmethod
    def of(cls, history: History) -> Outcome:
        """Of a history."""
        said = HOLD if history.state == rollouts.HELD else FAIL
        gates = tuple(each.gate for each in history.moments[-1].verdicts if each.outcome == said)
        return cls(
            history.state, history.stopped_at, len(history.moments), history.seconds, history.exposed,
            history.touched, gates, history.kept or 0,
        )  # fmt: skip


def many(
    world: World, plan: Plan, *, runs: int, seed: int, watch: Callable[[int], None] | None = None
) -> Summary:
    """Roll out again and again.

    Args:
        world: of each.
        plan: of each.
        runs: at least 1.
        seed: of the first; the others have those after it.
        watch: hears how many are done.
    """
    return joined(several(world, plan, runs=runs, seed=seed, watch=watch))


def several(
    world: World, plan: Plan, *, runs: int, seed: int, watch: Callable[[int], None] | None = None
) -> list[Outcome]:
    """As `many`, one by one: what several processes found is joined by `joined`."""
    found = []
    for each in range(runs):
        found.append(Outcome.of(run(world, plan, seed=seed + each, bounds=False)))
        if watch is not None:
            watch(each + 1)
    return found


def joined(found: Sequence[Outcome]) -> Summary:
    """Of one rollout at least."""
    states = Counter(each.state for each in found)
    exposed = [each.exposed for each in found]
    stopped = [each for each in found if each.state != rollouts.COMPLETED]
    return Summary(
        runs=len(found),
        completed=states[rollouts.COMPLETED] / len(found),
        failed=states[rollouts.FAILED] / len(found),
        held=states[rollouts.HELD] / len(found),
        looks=sum(each.looks for each in found),
        exposed=median(exposed),
        exposed_p90=quantiles(exposed, n=10, method="inclusive")[-1] if len(exposed) > 1 else exposed[0],
        touched=median(each.touched for each in found),
        seconds=median(each.seconds for each in found),
        places=dict(Counter(each.place for each in stopped).most_common()),
        gates=dict(Counter(gate for each in stopped for gate in each.gates).most_common()),
        kept=sum(each.kept for each in found),
    )
