"""A staged rollout: (rollout, verdicts, now) → rollout. No database, no network, no clock.

```
             every gate passes                         every gate passes, last stage
    running ────────────────────→ running, next step ─────────────────────────────────→ completed
       │  ↑ resume
       │  ├──── paused      by a person    ┐ goes no further; a gate that fails
       │  └──── held        no verdict yet ┘ ends these as well
       ├── a gate fails ──→ failed      ┐ the rule goes away, and devices return
       └── a person ──────→ aborted     ┘ to what is settled
```

A step is a stage and a phase of it. With the mode "shadow" each stage runs beside what serves first, then serves;
with "canary" and "ab" it serves at once. Within a step the bound grows by itself: the first devices are few, and twice
as many follow while half of those before have it. A shadow, which nobody is served by, grows beyond its stage where the
devices of the stage are too few for a verdict. A bound never shrinks, and devices are drawn by one salt, so who has
the release keeps it until the rollout ends.

Time that counts is what was looked at: a server that was off for a week, or whose clock jumped, neither soaks nor times
out by that. A step soaks from when its bound has reached the stage; it may time out from its beginning, but not while
it does nothing but soak.

With "ab" as many devices as serve the release, up to half of the cohort, are its control: those with the highest
buckets of the same salt. Who is in an arm never changes to the other one; beyond half of the cohort devices of the
control get the release, and what they told until then stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from edgekit.fleet.errors import ConflictError, InvalidError
from edgekit.fleet.rules.gates import COVERED, FAIL, PASS, Limits, Verdict
from edgekit_runtime.cohorts import Cohort
from edgekit_runtime.policies import BUCKETS, MAX_DISAGREEMENTS, Rule
from edgekit_runtime.strict_json import ContractError

RUNNING, PAUSED, HELD = "running", "paused", "held"
COMPLETED, FAILED, ABORTED = "completed", "failed", "aborted"
OPEN: Final = (RUNNING, PAUSED, HELD)
SHADOW, LIVE = "shadow", "live"
MODES: Final = ("shadow", "canary", "ab")
MAX_STAGES: Final = 20
# Seconds between two looks that count at most.
LONGEST_TICK_S: Final = 120
GROWTH: Final = 2
# Of each arm of an A/B comparison at most.
HALF: Final = BUCKETS // 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What an operator asks for, before it starts.

    Attributes:
        stages: percent of the cohort, rising, up to 100.
        mode: one of `MODES`.
        cohort: expression over labels, "" for everybody.
        soak_s: seconds that a step takes at least.
        timeout_s: seconds after which a step without a verdict is held for a person.
        patience_s: seconds without a word after which a device that took the release counts as failed.
        first_devices: about how many get it first in each step; 0 for all of the stage at once.
        widest_shadow: percent of the cohort up to which a shadow grows beyond its stage, where the stage has too few
            devices for a verdict; 0 for never.
        disagreements: inputs of a window whose answers differ that devices in the shadow may send; 0 for none.
        limits: of the gates.
    """

    stages: tuple[float, ...] = (1.0, 10.0, 50.0, 100.0)
    mode: str = "shadow"
    cohort: str = ""
    soak_s: int = 3600
    timeout_s: int = 7 * 86400
    patience_s: int = 86400
    first_devices: int = 100
    widest_shadow: float = 100.0
    disagreements: int = 0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        stages = self.stages
        rising = all(a < b for a, b in pairwise(stages))
        if not 1 <= len(stages) <= MAX_STAGES or not rising or stages[0] <= 0 or stages[-1] > 100:
            raise _invalid(
                f"stages {', '.join(f'{each:g}' for each in stages)}", "rising percent, such as 1,10,50,100"
            )
        if any(not math.isfinite(each) for each in stages):
            raise _invalid("a stage that is no number", "rising percent, such as 1,10,50,100")
        if self.mode not in MODES:
            raise _invalid(f"mode {self.mode!r}", f"one of {', '.join(MODES)}")
        for name in ("soak_s", "timeout_s", "patience_s", "first_devices"):
            if not 0 <= getattr(self, name) <= 10**9:
                raise _invalid(f"{name} {getattr(self, name)}", "a whole number of at least 0")
        if not 0 <= self.widest_shadow <= 100:
            raise _invalid(f"widest_shadow {self.widest_shadow:g}", "percent, from 0 to 100")
        if not 0 <= self.disagreements <= MAX_DISAGREEMENTS:
            raise _invalid(f"disagreements {self.disagreements}", f"from 0 to {MAX_DISAGREEMENTS}")
        if self.disagreements and self.mode != "shadow":
            raise _invalid(
                f"{self.disagreements} disagreements with mode {self.mode!r}",
                'the mode "shadow": nowhere else are there two answers to one input',
            )
        if self.timeout_s <= self.soak_s:
            raise _invalid(f"timeout_s {self.timeout_s}", f"more than soak_s, {self.soak_s}")
        if self.mode == "ab" and bound_of(stages[0]) > HALF:
            raise _invalid(
                f"an A/B comparison that begins with {_percent(stages[0])}",
                "a first stage of at most 50, which has a control as large as itself",
            )
        try:
            Cohort.parse(self.cohort)
        except ContractError as error:
            raise _invalid(
                f"cohort {self.cohort!r}: {error}", 'an expression such as region == "eu"'
            ) from error


@dataclass(frozen=True, slots=True)
class Rollout:
    """One release on its way to a cohort.

    Attributes:
        id: of the rollout.
        model: name.
        channel: whose policy it changes.
        release: id.
        baseline: id of the release that the cohort returns to, "" where there is none.
        salt: draws the devices.
        plan: as it was asked for.
        state: one of the states above.
        stage: number of the stage, from 0.
        phase: "shadow" or "live".
        live_bound: devices whose bucket is below it run the release.
        shadow_bound: those whose bucket is below it run it beside what serves.
        counted_s: seconds of this step that were looked at.
        soaked_s: of these, seconds in which the bound had reached the stage.
        looked_s: seconds since 1970 of the last look, 0 before the first.
        why: of the last change, for people.
    """

    id: str
    model: str
    channel: str
    release: str
    baseline: str
    salt: str
    plan: Plan
    state: str = RUNNING
    stage: int = 0
    phase: str = SHADOW
    live_bound: int = 0
    shadow_bound: int = 0
    counted_s: float = 0.0
    looked_s: float = 0.0
    why: str = ""
    soaked_s: float = 0.0

    @property
    def arm_bound(self) -> int:
        """Devices whose bucket is below it are the candidate's arm of an A/B comparison; 0 where there is none."""
        return min(self.live_bound, HALF) if self.plan.mode == "ab" and self.baseline else 0

    @property
    def control_bound(self) -> int:
        """Devices whose bucket is at least this are its control; as many buckets as the candidate's arm has."""
        return BUCKETS - self.arm_bound

    @property
    def decides_arms(self) -> bool:
        """Whether no later stage has a larger control."""
        after = self.plan.stages[self.stage + 1 : self.stage + 2]
        return self.target <= HALF and all(bound_of(each) > HALF for each in after)

    @property
    def is_soaked(self) -> bool:
        """Whether it was long enough at the bound of the stage."""
        return self.bound >= self.target and self.soaked_s >= self.plan.soak_s

    @property
    def target(self) -> int:
        """Bound of the stage."""
        return bound_of(self.plan.stages[self.stage])

    @property
    def bound(self) -> int:
        """Bound of this step, as far as it has grown."""
        return self.shadow_bound if self.phase == SHADOW else self.live_bound

    @property
    def is_open(self) -> bool:
        """Whether it still holds the channel."""
        return self.state in OPEN

    def rules(self) -> tuple[Rule, ...]:
        """What devices are told, before what is settled."""
        if not self.is_open:
            return ()
        # While it begins to serve, those whose turn has not come keep it in the shadow.
        steps = ((LIVE, self.live_bound, 0), (SHADOW, self.shadow_bound, self.live_bound))
        cohort = self.plan.cohort
        asked = {LIVE: 0, SHADOW: self.plan.disagreements}
        return tuple(
            Rule(self.release, self.salt, bound, mode, cohort, asked[mode])
            for mode, bound, above in steps
            if bound > above
        )

    def to_tree(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Rollout:
        """Read it back."""
        plan = dict(tree["plan"])
        plan["limits"] = Limits(**plan["limits"])
        plan["stages"] = tuple(plan["stages"])
        return cls(**{**tree, "plan": Plan(**plan)})


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a look or of a person's word.

    Attributes:
        rollout: as it is now.
        kind: of the decision, "" where nothing was decided but time went on.
        why: in words.
    """

    rollout: Rollout
    kind: str = ""
    why: str = ""


def begin(rollout: Rollout, devices: int) -> Step:
    """Open the first step.

    Args:
        rollout: new.
        devices: of the cohort that were heard of lately.
    """
    return _opened(rollout, 0, devices, f"begins with {_percent(rollout.plan.stages[0])}")


def look(rollout: Rollout, verdicts: Sequence[Verdict], *, devices: int, taken: int, now_s: float) -> Step:
    """Decide what the gates say now.

    Args:
        rollout: as it is.
        verdicts: of every gate of its phase.
        devices: of the cohort that were heard of lately.
        taken: of those within the bound, how many have told that they took or refused the release.
        now_s: seconds since 1970 by the server's clock.
    """
    failed = [each for each in verdicts if each.outcome == FAIL]
    # Devices keep the release while a person thinks, so what takes it back from them goes on looking.
    if rollout.is_open and failed:
        return _ended(
            replace(rollout, looked_s=now_s), FAILED, f"stopped at {_where(rollout)}: {_whys(failed)}"
        )
    if rollout.state != RUNNING:
        return Step(replace(rollout, looked_s=now_s))
    rollout = _ticked(rollout, now_s)
    # How many were drawn, which with few devices is far from what is expected of the bound.
    meant = max((each.meant for each in verdicts), default=0)
    grown = _grown(rollout, devices, meant, taken, rollout.target)
    waits = [each for each in verdicts if each.outcome != PASS]
    if not waits and rollout.is_soaked:
        return _advanced(rollout, devices, "every gate passes")
    soaks = not waits and rollout.bound >= rollout.target
    if rollout.counted_s >= rollout.plan.timeout_s and not soaks:
        why = _whys(waits) or "devices did not take it"
        return _changed(rollout, HELD, f"no verdict in time at {_where(rollout)}: {why}")
    if _too_few(rollout, waits):
        grown = _grown(rollout, devices, meant, taken, bound_of(rollout.plan.widest_shadow))
    if grown.bound != rollout.bound:
        return Step(
            replace(grown, why=f"grows to {grown.bound / BUCKETS:.2%}"),
            "grown",
            f"{grown.bound / BUCKETS:.2%}",
        )
    return Step(rollout)


def pause(rollout: Rollout) -> Step:
    """Take no further step until `resume`."""
    _needs(rollout, (RUNNING, HELD), "pause")
    return _changed(rollout, PAUSED, "paused")


def resume(rollout: Rollout) -> Step:
    """Go on; the time of the step begins anew."""
    _needs(rollout, (PAUSED, HELD), "resume")
    anew = replace(rollout, counted_s=0.0, soaked_s=0.0, looked_s=0.0)
    return _changed(anew, RUNNING, "resumed", kind="resumed")


def promote(rollout: Rollout, devices: int) -> Step:
    """Take the next step without waiting for the gates.

    Args:
        rollout: open.
        devices: of the cohort that were heard of lately.
    """
    _needs(rollout, OPEN, "promote")
    whole = replace(
        rollout, state=RUNNING,
        shadow_bound=max(rollout.shadow_bound, rollout.target if rollout.phase == SHADOW else 0),
        live_bound=max(rollout.live_bound, rollout.target if rollout.phase == LIVE else 0),
    )  # fmt: skip
    return _advanced(whole, devices, "promoted by a person", kind="promoted")


def abort(rollout: Rollout, why: str = "aborted by a person") -> Step:
    """End it; devices return to what is settled."""
    _needs(rollout, OPEN, "abort")
    return _ended(rollout, ABORTED, why)


def without_disagreements(rollout: Rollout) -> Step:
    """Ask devices for no inputs any more, whatever its state."""
    plan = replace(rollout.plan, disagreements=0)
    why = "inputs whose answers differ were deleted, and none are taken any more"
    return Step(replace(rollout, plan=plan), "erased", why)


def bound_of(percent: float) -> int:
    """Buckets of a share, at least one."""
    return min(BUCKETS, max(1, round(percent / 100 * BUCKETS)))


def settled_after(rollout: Rollout, settled: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """What a channel settles on once a rollout completed: its cohort has the release, first match wins.

    Args:
        rollout: completed.
        settled: before it, `[{"cohort": …, "release": …}]`.
    """
    rest = [dict(each) for each in settled if each["cohort"] not in {rollout.plan.cohort}]
    own = {"cohort": rollout.plan.cohort, "release": rollout.release}
    # For everybody: what was settled for parts of the fleet before is over.
    return [own] if not rollout.plan.cohort else [own, *rest]


def _advanced(rollout: Rollout, devices: int, why: str, *, kind: str = "") -> Step:
    if rollout.phase == SHADOW:
        went = replace(rollout, phase=LIVE, counted_s=0.0, soaked_s=0.0)
        return _grow_first(went, devices, kind or "passed", f"{why}: {_percent(_share(rollout))} serve it")
    if rollout.stage + 1 < len(rollout.plan.stages):
        after = rollout.stage + 1
        step = _opened(rollout, after, devices, f"{why}: on to {_percent(rollout.plan.stages[after])}")
        return replace(step, kind=kind or "passed")
    return replace(_ended(rollout, COMPLETED, f"{why}: completed"), kind=kind or COMPLETED)


def _opened(rollout: Rollout, stage: int, devices: int, why: str) -> Step:
    phase = SHADOW if rollout.plan.mode == "shadow" and rollout.baseline else LIVE
    new = replace(rollout, stage=stage, phase=phase, counted_s=0.0, soaked_s=0.0)
    return _grow_first(new, devices, "opened", why)


def _grow_first(rollout: Rollout, devices: int, kind: str, why: str) -> Step:
    first = _first_bound(rollout, devices)
    # Who ran it in the shadow of an earlier step, or has it, keeps it.
    before = max(rollout.live_bound, rollout.shadow_bound if rollout.phase == SHADOW else 0)
    # A shadow that grew beyond its stage may be wider than the next one.
    bound = max(before, min(rollout.target, before + first))
    grown = _with_bound(rollout, bound)
    return Step(replace(grown, why=why), kind, why)


def _ticked(rollout: Rollout, now_s: float) -> Rollout:
    """With the time that went by since the last look."""
    passed_s = min(max(now_s - rollout.looked_s, 0.0), LONGEST_TICK_S) if rollout.looked_s else 0.0
    soaks_s = passed_s if rollout.bound >= rollout.target else 0.0
    return replace(
        rollout, counted_s=rollout.counted_s + passed_s, soaked_s=rollout.soaked_s + soaks_s, looked_s=now_s
    )


def _whys(verdicts: Sequence[Verdict]) -> str:
    """Why gates say what they say; once where all say the same."""
    if len({each.why for each in verdicts}) == 1 and len(verdicts) > 1:
        return verdicts[0].why
    return "; ".join(f"{each.gate}: {each.why}" for each in verdicts)


def _too_few(rollout: Rollout, waits: Sequence[Verdict]) -> bool:
    """Whether next to all devices of a stage have shown enough in the shadow, and no gate can tell from them."""
    told = all(each.devices >= COVERED * each.meant for each in waits) and any(each.meant for each in waits)
    return rollout.phase == SHADOW and rollout.is_soaked and told


def _grown(rollout: Rollout, devices: int, meant: int, taken: int, target: int) -> Rollout:
    """Twice as many once half of those that are meant have it, up to a target."""
    # Where nobody is there yet, the first that come are to be few.
    if rollout.bound >= target or taken < meant / 2 or not devices:
        return rollout
    more = max(_first_bound(rollout, devices), rollout.bound * (GROWTH - 1))
    return _with_bound(rollout, min(target, rollout.bound + more))


def _with_bound(rollout: Rollout, bound: int) -> Rollout:
    return (
        replace(rollout, shadow_bound=bound)
        if rollout.phase == SHADOW
        else replace(rollout, live_bound=bound)
    )


def _first_bound(rollout: Rollout, devices: int) -> int:
    few = rollout.plan.first_devices
    return BUCKETS if few == 0 or devices <= few else max(1, round(few / devices * BUCKETS))


def _ended(rollout: Rollout, state: str, why: str) -> Step:
    return _changed(rollout, state, why)


def _changed(rollout: Rollout, state: str, why: str, *, kind: str = "") -> Step:
    return Step(replace(rollout, state=state, why=why), kind or state, why)


def _needs(rollout: Rollout, states: Sequence[str], word: str) -> None:
    if rollout.state not in states:
        raise ConflictError(
            f"rollout {rollout.id} is {rollout.state}",
            expected=f"{' or '.join(states)}, to {word} it",
            way_out="Look at `edgekit rollout status`; what ended is begun anew with `edgekit rollout create`.",
            code="rollout_state",
        )


def _share(rollout: Rollout) -> float:
    return rollout.plan.stages[rollout.stage]


def _where(rollout: Rollout) -> str:
    return f"{_percent(_share(rollout))} ({rollout.phase})"


def _percent(share: float) -> str:
    return f"{share:g}%"


def _invalid(found: str, expected: str) -> InvalidError:
    return InvalidError(found, expected=expected, way_out="See `edgekit rollout create --help`.", code="plan")
