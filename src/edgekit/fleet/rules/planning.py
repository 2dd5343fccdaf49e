"""What a rollout takes before it starts: devices and days of each step, and what its gates can see. Pure.

Means of devices are planned with the bets that decide (`statistics.planning`). Where nine of ten devices of a step
have told, their mean passes as it is (`gates.COVERED`), so a gate of means never waits for more than those; to stop a
candidate, and to compare two arms, takes as many devices as the bet takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.rules.arms import MEASURES, SPAN
from edgekit.fleet.rules.gates import COVERED, Limits, Setting, setting_of
from edgekit.fleet.rules.rollouts import LIVE, SHADOW, Plan
from edgekit.fleet.statistics import planning
from edgekit.fleet.statistics.corrections import bonferroni
from edgekit.fleet.statistics.planning import devices_needed

DAY_S: Final = 86400
# How far from perfect a bad candidate is, in distances of the limit, where nobody says what is to be seen.
TWICE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Expected:
    """What is expected of devices and of the candidate.

    Attributes:
        devices: of the cohort.
        samples_per_day: predictions of a device that are told in a day.
        agreement: of a good candidate with the live version, mean over devices.
        spread: standard deviation of the agreement between devices.
        drop: in agreement, that a bad candidate has and is to be stopped for.
        latency_spread: standard deviation of the log of the latency between devices, for A/B.
        power: probability that so many devices show it.
    """

    devices: int
    samples_per_day: float = 1000.0
    agreement: float = 0.97
    spread: float = 0.03
    drop: float = 0.02
    latency_spread: float = 0.3
    power: float = 0.8

    def __post_init__(self) -> None:
        ranges = {
            "devices": (1, 10**9), "samples_per_day": (1e-6, 1e12), "agreement": (0.0, 1.0), "spread": (0.0, 0.5),
            "drop": (0.0, 1.0), "latency_spread": (0.0, 5.0), "power": (0.01, 0.999),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise _wrong(f"{name} {getattr(self, name):g}", f"from {low:g} to {high:g}")
        if not 0 < self.drop < self.agreement:
            raise _wrong(
                f"a drop of {self.drop:g} from {self.agreement:g}", "above 0, and less than the agreement"
            )


@dataclass(frozen=True, slots=True)
class Need:
    """What one gate of a step takes.

    Attributes:
        gate: name; of an A/B comparison "arms: " and the measure.
        devices: that there are for it; of an A/B comparison in each arm.
        to_pass: devices that show that a good candidate keeps the limit, as far as they are there; None for never.
        to_stop: devices that show that a bad one does not; None where that is not planned, or never.
        decides: whether a good candidate passes with the devices that there are, and a bad one is stopped.
    """

    gate: str
    devices: int
    to_pass: int | None
    to_stop: int | None
    decides: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step of a rollout.

    Attributes:
        percent: of the cohort.
        phase: "shadow" or "live".
        devices: within the bound.
        days: that it takes at least: until devices have shown enough, and its soak.
        needs: of each gate.
        smallest_drop: in agreement, that its devices show; None where there is no agreement, or they show none.
        in_time: whether devices show enough before the step times out.
    """

    percent: float
    phase: str
    devices: int
    days: float
    needs: tuple[Need, ...]
    smallest_drop: float | None
    in_time: bool

    @property
    def decides(self) -> bool:
        """Whether every gate does, in time."""
        return self.in_time and all(each.decides for each in self.needs)


@dataclass(frozen=True, slots=True)
class Foreseen:
    """All of a rollout.

    Attributes:
        steps: in their order.
        days: that a good candidate takes at least.
        smallest_drop: in agreement, that the whole cohort shows in the shadow; None where nothing runs there.
        warnings: why it may end without a verdict, in words.
    """

    steps: tuple[StepPlan, ...]
    days: float
    smallest_drop: float | None
    warnings: tuple[str, ...]

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "decides": not self.warnings}


def foreseen(plan: Plan, expected: Expected) -> Foreseen:
    """What a rollout takes.

    Args:
        plan: of it.
        expected: of devices and candidate.

    Raises:
        InvalidError: there is no such distribution.
    """
    phases = (SHADOW, LIVE) if plan.mode == "shadow" else (LIVE,)
    steps = tuple(
        _step(plan, expected, number, phase) for number in range(len(plan.stages)) for phase in phases
    )
    drop = _smallest_drop(plan, expected, expected.devices) if plan.mode == "shadow" else None
    return Foreseen(steps, sum(each.days for each in steps), drop, _warnings(plan, steps))


def at_creation(plan: Plan, devices: int, *, baseline: bool = True) -> tuple[str, ...]:
    """Why a rollout may end without a verdict, judged by the size of its cohort alone.

    Args:
        plan: of it.
        devices: of the cohort that were heard of lately.
        baseline: whether there is a version before; without one nothing is compared.
    """
    if not devices:
        return ("no device fits the cohort, or none was heard of lately: it waits for the first",)
    if not baseline:
        plan = replace(plan, mode="canary")
    limit = plan.limits.agreement
    bad = max(0.0, 1 - TWICE * (1 - limit))
    if not 0 < bad < limit < 1:
        return ()
    middle = (1 + limit) / 2
    # As different from one another as agreement may be, at most three points.
    spread = min(0.03, (1 - middle) / 2)
    expected = Expected(devices, agreement=middle, spread=spread, drop=middle - bad)
    return foreseen(plan, expected).warnings


def _step(plan: Plan, expected: Expected, number: int, phase: str) -> StepPlan:
    limits, percent = plan.limits, plan.stages[number]
    here = max(1, round(expected.devices * percent / 100))
    setting = setting_of(limits, mode=plan.mode, phase=phase)
    tells_days = limits.samples / expected.samples_per_day
    # A shadow that is too small for a verdict grows beyond its stage.
    most = max(here, round(expected.devices * plan.widest_shadow / 100)) if phase == SHADOW else here
    needs = [_failures(limits, setting, here)]
    drop = None
    if phase == SHADOW:
        needs.append(_agreement(plan, expected, setting, here, most))
        drop = _smallest_drop(plan, expected, most)
    elif plan.mode == "ab":
        # The last stage with a control decides; those before may only stop it.
        later = plan.stages[number + 1] if number + 1 < len(plan.stages) else 101.0
        if percent <= 50 < later:
            needs += _arms(expected, limits, setting, here)
    if phase == SHADOW or plan.mode != "shadow":
        needs += [_rare(name, getattr(limits, name), limits, setting, here) for name in ("errors", "nans")]
    days = max(plan.soak_s / DAY_S, tells_days)
    return StepPlan(percent, phase, here, days, tuple(needs), drop, tells_days <= plan.timeout_s / DAY_S)


def _failures(limits: Limits, setting: Setting, here: int) -> Need:
    limit = limits.failures
    bet = planning.devices_without_failure(limit, setting.alpha) if 0 < limit < 1 else None
    return Need("failures", here, _passing(bet, limits, here), None, True)


def _rare(name: str, limit: float, limits: Limits, setting: Setting, here: int) -> Need:
    """Errors and NaN, of which a good candidate has none."""
    perfect = planning.always(1.0)
    bet = devices_needed(perfect, 1 - limit, setting.alpha, 0.5) if 0 < limit < 1 else None
    return Need(name, here, _passing(bet, limits, here), None, True)


def _agreement(plan: Plan, expected: Expected, setting: Setting, here: int, most: int) -> Need:
    limits = plan.limits
    good = planning.spread(expected.agreement, expected.spread)
    bet = (
        devices_needed(good, limits.agreement, setting.alpha, expected.power)
        if limits.agreement < 1
        else None
    )
    stop = _to_stop(plan, expected, expected.drop)
    passes = _passing(bet, limits, here)
    keeps = expected.agreement >= limits.agreement
    return Need(
        "agreement", most, passes if keeps else None, stop, keeps and stop is not None and stop <= most
    )


def _to_stop(plan: Plan, expected: Expected, drop: float) -> int | None:
    """Devices that show that a candidate which is worse by a drop is below the limit."""
    setting = setting_of(plan.limits, mode="shadow", phase=SHADOW)
    mean = max(expected.agreement - drop, 1e-6)
    limit = plan.limits.agreement
    if not 0 < limit < 1 or mean >= limit:
        return None
    spread = min(expected.spread, 0.99 * math.sqrt(mean * (1 - mean)))
    bad = planning.spread(mean, spread).mirrored()
    # Half of the chance is for all devices together, half for parts of them.
    return devices_needed(bad, 1 - limit, setting.stop_alpha / 2, expected.power)


def _smallest_drop(plan: Plan, expected: Expected, devices: int) -> float | None:
    return planning.smallest(devices, expected.agreement * 0.999, partial(_to_stop, plan, expected))


def _arms(expected: Expected, limits: Limits, setting: Setting, here: int) -> list[Need]:
    """Of the stage whose control is the largest: pairs of devices that each measure takes."""
    named = {name: float(value) for name, value in asdict(limits).items()}
    deciding = [each for each in MEASURES if each.decides]
    part = bonferroni(setting.stop_alpha, len(deciding) + 1)
    found = []
    for each in deciding:
        effect = each.effect(named)
        sd = 0.0
        if each.name == "latency_ms":
            effect, sd = math.log1p(effect), expected.latency_spread
        edge = 0.5 - 0.5 / SPAN
        passes = devices_needed(planning.paired(0.0, sd, SPAN * effect), edge, setting.alpha, expected.power)
        stops = devices_needed(planning.paired(effect, sd, SPAN * effect), 0.5, part, expected.power)
        enough = passes is not None and stops is not None and max(passes, stops) <= here
        found.append(Need(f"arms: {each.says}", here, passes, stops, enough))
    return found


def _passing(bet: int | None, limits: Limits, here: int) -> int:
    """Devices by a bet, or nine of ten of those that there are, whichever are fewer; and the least that are asked."""
    covered = max(min(limits.devices, here), math.ceil(COVERED * here))
    return covered if bet is None else max(min(bet, covered), min(limits.devices, here))


def _warnings(plan: Plan, steps: Sequence[StepPlan]) -> tuple[str, ...]:
    found = []
    if not all(each.in_time for each in steps):
        found.append(
            f"a device takes longer to show {plan.limits.samples} predictions than a step may take,"
            f" {plan.timeout_s / DAY_S:.3g} days: give it a longer time-out, or ask for fewer samples"
        )
    # Of a gate that several stages do not decide, the first.
    undecided: dict[tuple[str, str], str] = {}
    for step in steps:
        for need in step.needs:
            if not need.decides:
                takes = [each for each in (need.to_pass, need.to_stop) if each is not None]
                counted = (
                    f"takes about {max(takes):,} devices" if takes else "is decided by no number of devices"
                )
                arm = " in each arm" if need.gate.startswith("arms") else ""
                text = f"{need.gate} at {step.percent:g}% {counted}{arm}, and there are {need.devices:,}"
                undecided.setdefault((need.gate, step.phase), text)
    return (*found, *undecided.values())


def _wrong(found: str, expected: str) -> InvalidError:
    return InvalidError(found, expected=expected, way_out="See `edgekit rollout plan --help`.", code="plan")
