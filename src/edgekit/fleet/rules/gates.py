"""Gates: what a rollout has to show before it goes on. (evidence, limits, rollout so far) → verdicts, pure.

Each gate says pass, fail or hold, and may be asked as often as anybody likes:

- **fail** where a confidence sequence that is valid at every look excludes that the limit is kept. The chance that any
  gate of a rollout ever stops a release that keeps all limits is at most `alpha`: it is split over gates and slices
  (Bonferroni), and every sequence runs over the whole rollout, so its stages need no share of their own.
- **pass** where a sequence at `alpha` shows that the limit is kept. All gates have to pass, and for that none needs a
  correction (intersection-union test, Berger 1982).
- Where nine of ten devices that are meant have shown enough, next to nothing is left to be estimated, and their mean is
  what passes. Fleets of twenty devices live by that. A mean that is below the limit and may yet be chance holds.
- A mean that is `GROSS` times as far from perfect as the limit fails at once on all the devices that are meant, though
  one or two of them prove nothing of the others: wrong weights on the only device of a stage are no reason to wait.
  That is outside of `alpha`; a release that keeps its limits meets it where one device in a tiny stage is far off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from edgekit.fleet.errors import InvalidError
from edgekit.fleet.rules import arms
from edgekit.fleet.rules.evidence import Evidence, Flags, Shares
from edgekit.fleet.statistics import corrections, drift, rare, ratios, sample_ratio
from edgekit.fleet.statistics.parts import log_capital, lower_bound

PASS, FAIL, HOLD = "pass", "fail", "hold"
NOBODY: Final = "no device fits the cohort, or none was heard of lately"
# Of a slice, before it is looked at on its own.
SLICE_DEVICES: Final = 3
MAX_SLICES: Final = 64
# What is so many times as far from perfect as the limit is stops a release on the devices of a stage, few as they are.
GROSS: Final = 3
GROSS_FAILURES: Final = 0.5
# Of the devices that are meant, before their mean is taken for that of all: some are always switched off.
COVERED: Final = 0.9


@dataclass(frozen=True, slots=True)
class Limits:
    """What is asked of a release.

    Attributes:
        agreement: mean share of answers that are the same as those of the live version, at least.
        errors: mean share of inputs that raise an error, at most.
        nans: mean share of answers with NaN, at most.
        latency_ratio: geometric mean of the ratio of median latencies, at most.
        failures: share of devices on which it does not run, crashes, is rolled back or falls silent, at most.
        drift: population stability index of the confidence against the live version's, at most.
        devices: that have to show enough, or all where fewer are meant.
        samples: predictions after which a device has shown enough.
        alpha: chance that a release that keeps every limit is stopped, over the whole rollout.
    """

    agreement: float = 0.95
    errors: float = 0.01
    nans: float = 0.005
    latency_ratio: float = 1.25
    failures: float = 0.05
    drift: float = 0.25
    devices: int = 5
    samples: int = 100
    alpha: float = 0.05

    def __post_init__(self) -> None:
        ranges = {
            **dict.fromkeys(("agreement", "errors", "nans", "failures"), (0.0, 1.0)),
            "latency_ratio": (1 / ratios.LARGEST_RATIO, ratios.LARGEST_RATIO),
            "drift": (0.0, 100.0),
            "devices": (1, 10**9),
            "samples": (1, 10**9),
            "alpha": (1e-6, 0.5),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InvalidError(
                    f"{name} {value:g}",
                    expected=f"from {low:g} to {high:g}",
                    way_out="See `edgekit rollout create --help`.",
                    code="limits",
                )


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate says.

    Attributes:
        gate: name.
        outcome: "pass", "fail" or "hold".
        why: in words.
        limit: that is to be kept.
        estimate: of what it looks at, None where nothing is known.
        lower: bound, None where there is none.
        upper: bound.
        devices: that it is based on.
        meant: devices that could be.
        slice: "label=value" where it is about a part of the devices.
    """

    gate: str
    outcome: str
    why: str
    limit: float
    estimate: float | None = None
    lower: float | None = None
    upper: float | None = None
    devices: int = 0
    meant: int = 0
    slice: str = ""

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Setting:
    """Of one look at a gate.

    Attributes:
        limits: of the rollout.
        stop_alpha: share of the chance of a false stop that this gate has.
        bounds: whether people want to see between what a mean lies; what is decided needs only the limit.
    """

    limits: Limits
    stop_alpha: float
    bounds: bool = True

    @property
    def alpha(self) -> float:
        """Chance of a pass that is not deserved, of this gate alone."""
        return self.limits.alpha


Judge = Callable[[Evidence, Setting], Verdict]


@dataclass(frozen=True, slots=True)
class Gate:
    """A row of the table.

    Attributes:
        judge: says the verdict.
        steps: (mode, phase) → "needed", or "watches": it may only stop. What is not named is not asked.
    """

    judge: Judge
    steps: Mapping[tuple[str, str], str]


def judged(
    evidence: Evidence, limits: Limits, *, mode: str, phase: str, bounds: bool = True
) -> tuple[Verdict, ...]:
    """The verdicts of all gates of a step.

    Args:
        evidence: of the step.
        limits: of the rollout.
        mode: "shadow", "canary" or "ab".
        phase: "shadow" or "live".
        bounds: whether to say between what each mean lies; the outcome is the same without.
    """
    asked = _asked(mode, phase)
    setting = setting_of(limits, mode=mode, phase=phase, bounds=bounds)
    if evidence.meant == 0:
        # A stage of few percent may well draw none of few devices; a cohort that nobody is of proves nothing.
        found = (PASS, "no device is meant here") if sum(evidence.heard) else (HOLD, NOBODY)
        return tuple(Verdict(name, *found, _limit(limits, name)) for name in asked)
    return tuple(_told(gate, gate.steps[mode, phase], evidence, setting) for name, gate in asked.items())


def _told(gate: Gate, duty: str, evidence: Evidence, setting: Setting) -> Verdict:
    verdict = gate.judge(evidence, setting)
    if verdict.outcome == HOLD and duty == "watches":
        return Verdict(**{**asdict(verdict), "outcome": PASS, "why": f"nothing against it ({verdict.why})"})
    return verdict


def _limit(limits: Limits, name: str) -> float:
    return float(getattr(limits, name, limits.alpha))


# Means over devices


@dataclass(frozen=True, slots=True)
class _Measure:
    """How a column is read.

    Attributes:
        gate: name, also of its limit and its column.
        says: what it is, in words.
        at_least: whether more is better.
        perfect: what a release shows that changes nothing.
        onto: from the column to [0, 1], where the mean is taken.
        back: from there to what people read.
    """

    gate: str
    says: str
    at_least: bool
    perfect: float
    onto: Callable[[Shares], Shares]
    back: Callable[[float], float]

    def upwards(self, column: Shares) -> Shares:
        """Onto [0, 1], where more is better."""
        x = self.onto(np.asarray(column, dtype=np.float64))
        return x if self.at_least else 1 - x

    def told(self, mean: float) -> float:
        """What people read of a mean of `upwards`."""
        return self.back(mean if self.at_least else 1 - mean)


@dataclass(frozen=True, slots=True)
class _Part:
    """Devices whose mean is looked at: all, or a slice of them.

    Attributes:
        name: of the slice, "" for all.
        now: [n], what they have shown by now, upwards.
        meant: devices that could have.
        above: log of the capital of the bet that their mean is above the limit.
        below: of the bet that it is below.
        stop_alpha: share of the chance of a false stop.
    """

    name: str
    now: Shares
    meant: int
    above: float
    below: float
    stop_alpha: float


def _mean_gate(measure: _Measure) -> Judge:
    def judge(evidence: Evidence, setting: Setting) -> Verdict:
        limit = float(getattr(setting.limits, measure.gate))
        bar, best = (float(measure.upwards(np.array([each]))[0]) for each in (limit, measure.perfect))
        first, now = (getattr(each, measure.gate) for each in (evidence.first, evidence.now))
        known = ~np.isnan(first)
        now = measure.upwards(np.where(np.isnan(now), first, now)[known])
        first = measure.upwards(first[known])
        parts = _parts(evidence, setting, known, first, now, bar)
        for part in parts:
            if why := _failing(measure, part, bar, max(0.0, best - bar)):
                return _mean_verdict(measure, FAIL, f"{why}; limit {limit:g}", limit, part, first, setting)
        whole = parts[0]
        outcome, why = _passing(whole, bar, setting)
        if outcome == PASS:
            why = f"{measure.says} {measure.told(float(whole.now.mean())):.4g} {why}, limit {limit:g}"
        return _mean_verdict(measure, outcome, why, limit, whole, first, setting)

    return judge


def _parts(
    evidence: Evidence, setting: Setting, known: Flags, first: Shares, now: Shares, bar: float
) -> list[_Part]:
    """All devices, then the slices that are neither too small nor the same as all."""
    named = list(evidence.slices.items())[:MAX_SLICES]
    slices = [(name, each) for name, each in named if SLICE_DEVICES <= each.meant < evidence.meant]
    members = [np.ones(len(first), dtype=bool), *(each.members[known] for _, each in slices)]
    above = log_capital(first, members[:1], bar)
    below = log_capital(1 - first, members, 1 - bar)
    # Where it does not run it shows nothing, and the gate on failures counts it.
    running = evidence.meant - int(evidence.outcomes.sum())
    # Half of the chance is for the whole, half for all slices together, those that are too small yet included.
    shares = [1 / 2 if named else 1.0, *(1 / 2 / len(named) for _ in slices)]
    return [
        _Part(name, now[flags], max(meant, int(flags.sum())), float(above[0]), float(log), setting.stop_alpha * share)
        for name, meant, flags, log, share in zip(
            ["", *(name for name, _ in slices)],
            [running, *(each.meant for _, each in slices)],
            members, below, shares, strict=True,
        )
    ]  # fmt: skip


def _failing(measure: _Measure, part: _Part, bar: float, allowed: float) -> str:
    """Why a part fails, "" where it does not."""
    n = len(part.now)
    if not n:
        return ""
    mean = float(part.now.mean())
    said = f"{measure.says} {measure.told(mean):.4g}{f' where {part.name}' if part.name else ''} on {n}"
    if part.below >= -math.log(part.stop_alpha) and mean < bar:
        return f"{said} devices"
    # A limit that is itself far from perfect leaves no room for so many times; there most of what is left will do.
    slack = min((GROSS - 1) * allowed, 2 / 3 * bar)
    # What the others show can at best be perfect.
    if float(part.now.sum()) + part.meant - n < (bar - slack) * part.meant:
        return f"{said} of {part.meant} devices"
    return ""


def _passing(whole: _Part, bar: float, setting: Setting) -> tuple[str, str]:
    n, meant = len(whole.now), whole.meant
    least = min(setting.limits.devices, meant)
    if not n or n < least:
        return HOLD, f"{n} of {meant} devices; at least {least} have to show enough"
    if n >= COVERED * meant and float(whole.now.mean()) >= bar:
        return PASS, f"on {n} of {meant} devices"
    if whole.above >= -math.log(setting.alpha) and float(whole.now.mean()) >= bar:
        return PASS, f"on {n} devices"
    return HOLD, f"{n} of {meant} devices, not decided yet"


def _mean_verdict(
    measure: _Measure, outcome: str, why: str, limit: float, part: _Part, first: Shares, setting: Setting
) -> Verdict:
    n = len(part.now)
    estimate = measure.told(float(part.now.mean())) if n else None
    ends: tuple[float | None, float | None] = (None, None)
    if setting.bounds and not part.name:
        low, high = lower_bound(first, setting.alpha), 1 - lower_bound(1 - first, part.stop_alpha)
        at = measure.told(low), measure.told(high)
        ends = min(at), max(at)
    return Verdict(measure.gate, outcome, why, limit, estimate, ends[0], ends[1], n, part.meant, part.name)


def _same(x: Any) -> Any:
    return x


_MEANS: Final = (
    _Measure("agreement", "mean agreement", True, 1.0, _same, _same),
    _Measure("errors", "mean share of errors", False, 0.0, _same, _same),
    _Measure("nans", "mean share of NaN", False, 0.0, _same, _same),
    _Measure("latency_ratio", "mean latency ratio", False, 1.0, ratios.to_unit, ratios.from_unit),
)

# Failures


def _judge_failures(evidence: Evidence, setting: Setting) -> Verdict:
    limit, n = setting.limits.failures, len(evidence.outcomes)
    failed, meant = int(evidence.outcomes.sum()), max(evidence.meant, n)
    said = f"{failed} of {n} devices failed"
    if evidence.reasons:
        said += " (" + ", ".join(f"{code} {count}" for code, count in _most(evidence.reasons)) + ")"
    lower = upper = None
    if setting.bounds:
        lower = rare.interval(failed, max(n, evidence.taken), setting.stop_alpha, side="lower").lower
        upper = rare.interval(failed, n, setting.alpha, side="upper").upper

    def verdict(outcome: str, why: str) -> Verdict:
        return Verdict("failures", outcome, why, limit, failed / n if n else None, lower, upper, n, meant)

    gross = failed / meant > limit and failed / meant >= GROSS_FAILURES
    # A failure is known sooner than that all is well, so those that have not told yet count as well here.
    tried = max(n, evidence.taken)
    if gross or _more_frequent(failed, tried, limit) >= -math.log(setting.stop_alpha):
        return verdict(FAIL, f"{said}, {tried} took it, limit {limit:g}")
    enough = n >= min(setting.limits.devices, meant)
    settled = n >= COVERED * meant and failed <= limit * n
    if enough and (settled or _less_frequent(failed, n, limit) >= -math.log(setting.alpha)):
        return verdict(PASS, f"{said}, limit {limit:g}")
    return verdict(HOLD, f"{said}, {meant - n} have not told yet")


def _more_frequent(failed: int, n: int, limit: float) -> float:
    """Log of the evidence that failures are more frequent than the limit."""
    if 0 < limit < 1:
        return rare.log_evidence_above(failed, n, limit)
    return math.inf if failed and not limit else 0.0


def _less_frequent(failed: int, n: int, limit: float) -> float:
    """Log of the evidence that they are less frequent."""
    return rare.log_evidence_below(failed, n, limit) if 0 < limit < 1 else 0.0


def _most(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:3]


# Distributions


def _judge_drift(evidence: Evidence, setting: Setting) -> Verdict:
    limit, devices = setting.limits.drift, len(evidence.now)
    live, candidate = evidence.live_confidence, evidence.confidence
    enough = devices >= min(setting.limits.devices, evidence.meant)
    if not live.n or not candidate.n:
        why = "this task has no confidence" if enough else "nothing was compared yet"
        return Verdict("drift", PASS if enough else HOLD, why, limit, devices=devices, meant=evidence.meant)
    before, after = drift.rebin(live, candidate)
    found = drift.psi(before, after)
    # Few samples differ by chance: what that alone gives is not held against a release.
    noise = drift.psi_critical(live.n, candidate.n, len(before), setting.stop_alpha)

    def verdict(outcome: str, why: str) -> Verdict:
        return Verdict(
            "drift", outcome, why, limit, found, max(0.0, found - noise), None, devices, evidence.meant
        )

    if found - noise > limit:
        return verdict(FAIL, f"index {found:.3f} of the confidence, limit {limit:g}")
    if enough and found <= max(limit, noise):
        return verdict(PASS, f"index {found:.3f}, limit {limit:g}")
    return verdict(HOLD, f"index {found:.3f} on {devices} devices, not decided yet")


def _judge_sample_ratio(evidence: Evidence, setting: Setting) -> Verdict:
    """Whether as many devices within the bound are heard of as drawn: those that a release kills fall silent."""
    inside, outside = evidence.heard
    alpha = setting.stop_alpha
    share = evidence.share
    if not inside + outside or not 0 < share < 1:
        return Verdict("sample_ratio", PASS, "all devices are meant", alpha, meant=evidence.meant)
    p = sample_ratio.p_value((inside, outside), (share, 1 - share))
    why = f"{inside} devices inside, {outside} outside, drawn {share:.2%}"
    verdict = FAIL if p < alpha else PASS
    return Verdict("sample_ratio", verdict, why, alpha, p, None, None, inside + outside, evidence.meant)


def _judge_arms(evidence: Evidence, setting: Setting) -> Verdict:
    """Whether the candidate does worse than the control; held only where it is the last stage that has one."""
    if evidence.arms is None:
        return Verdict("arms", PASS, "there is no version before to compare with", setting.stop_alpha)
    found = compared(evidence, setting)
    why, n = arms.told(found), min(len(evidence.arms.candidate), len(evidence.arms.control))
    outcome = {arms.WORSE: FAIL, arms.UNEVEN: FAIL, arms.UNKNOWN: HOLD if found.decides else PASS}
    return Verdict(
        "arms", outcome.get(found.verdict, PASS), f"{found.verdict}: {why}", setting.stop_alpha,
        devices=n, meant=min(found.candidate, found.control),
    )  # fmt: skip


def compared(evidence: Evidence, setting: Setting) -> arms.Compared:
    """The A/B comparison that the gate looks at; the evidence has arms."""
    assert evidence.arms is not None
    limits = {name: float(value) for name, value in asdict(setting.limits).items()}
    return arms.compare(
        evidence.arms, limits, stop_alpha=setting.stop_alpha, alpha=setting.alpha, bounds=setting.bounds
    )


def setting_of(limits: Limits, *, mode: str, phase: str, bounds: bool = True) -> Setting:
    """What every gate of a step is given.

    Args:
        limits: of the rollout.
        mode: "shadow", "canary" or "ab".
        phase: "shadow" or "live".
        bounds: as in `judged`.
    """
    return Setting(limits, corrections.bonferroni(limits.alpha, len(_asked(mode, phase))), bounds)


def _asked(mode: str, phase: str) -> dict[str, Gate]:
    return {name: gate for name, gate in GATES.items() if (mode, phase) in gate.steps}


_PAIRED: Final = {("shadow", "shadow"): "needed"}
_SERVING: Final = {("shadow", "live"): "watches", ("canary", "live"): "needed", ("ab", "live"): "needed"}
_ALWAYS: Final = {**_PAIRED, **dict.fromkeys(_SERVING, "needed")}
_AGREEMENT, _ERRORS, _NANS, _LATENCY = (_mean_gate(each) for each in _MEANS)

GATES: Final[Mapping[str, Gate]] = {
    "failures": Gate(_judge_failures, _ALWAYS),
    "agreement": Gate(_AGREEMENT, _PAIRED),
    "errors": Gate(_ERRORS, {**_PAIRED, **_SERVING}),
    "nans": Gate(_NANS, {**_PAIRED, **_SERVING}),
    "latency_ratio": Gate(_LATENCY, {**_PAIRED, **dict.fromkeys(_SERVING, "watches")}),
    "drift": Gate(_judge_drift, _PAIRED),
    "sample_ratio": Gate(_judge_sample_ratio, dict.fromkeys((*_PAIRED, *_SERVING), "watches")),
    "arms": Gate(_judge_arms, {("ab", "live"): "needed"}),
}
