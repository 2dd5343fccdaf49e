"""Where a rollout stands: its stages with their phases, and what it does now in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.fleet.rules.rollouts import (
    ABORTED,
    COMPLETED,
    FAILED,
    HELD,
    LIVE,
    PAUSED,
    RUNNING,
    SHADOW,
    Rollout,
)
from edgekit.fleet.server.dashboard import words

MODES: Final[Mapping[str, str]] = {
    "shadow": "shadow, then live",
    "canary": "live at once",
    "ab": "A/B",
}
# Gates that a sentence names; of more it says how many.
MOST_NAMED: Final = 2


@dataclass(frozen=True, slots=True)
class Phase:
    """Of a stage.

    Attributes:
        name: "shadow" or "live".
        status: "done", "now", "stopped" or "next".
        says: for who does not see the colours.
    """

    name: str
    status: str
    says: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One of the steps at the top.

    Attributes:
        share: of the cohort.
        status: as of a phase.
        phases: in their order.
    """

    share: str
    status: str
    phases: tuple[Phase, ...]


def look_of(tree: Mapping[str, Any], rollout: Rollout) -> Mapping[str, Any] | None:
    """The last look at the gates, None where it was at an earlier step."""
    look: Mapping[str, Any] | None = tree["look"]
    if look is None or (look["stage"], look["phase"]) != (rollout.stage, rollout.phase):
        return None
    return look


def step_of(rollout: Rollout) -> str:
    """Where a rollout stands, so that nobody decides on another step than the one that was seen."""
    return f"{rollout.state}.{rollout.stage}.{rollout.phase}"


def about(rollout: Rollout) -> str:
    """Mode, cohort and channel in words."""
    cohort = rollout.plan.cohort or "everybody"
    return f"{MODES[rollout.plan.mode]} · {cohort} · channel {rollout.channel}"


def line_of(rollout: Rollout, look: Mapping[str, Any] | None) -> str:
    """What a rollout does now, in a sentence.

    Args:
        rollout: as it is.
        look: the last one of this step, None where there was none.
    """
    if not rollout.is_open or rollout.state == PAUSED:
        return sentence(rollout.why)
    share = f"{rollout.plan.stages[rollout.stage]:g}%"
    does = f"runs in the shadow of {share}" if rollout.phase == SHADOW else f"serves {share}"
    start = f"Stage {rollout.stage + 1} of {len(rollout.plan.stages)} {does}"
    return f"{start}; {_does(rollout, look)}."


def _does(rollout: Rollout, look: Mapping[str, Any] | None) -> str:
    if rollout.state == HELD:
        return f"held for a person: {rollout.why}"
    if look is None:
        return "the gates have not been looked at yet"
    waits = [
        f"“{words.GATES.get(each['gate'], each['gate'])}”"
        for each in look["verdicts"]
        if each["outcome"] != "pass"
    ]
    if len(waits) > MOST_NAMED:
        return f"waits for {len(waits)} of {len(look['verdicts'])} gates"
    if waits:
        return f"waits for {_listed(waits)}"
    if rollout.bound < rollout.target:
        return f"every gate passes, and it grows from {words.bound(rollout.bound)}"
    soak_s = rollout.plan.soak_s - rollout.soaked_s
    return (
        f"every gate passes, and it soaks {words.duration(soak_s)} more"
        if soak_s > 0
        else "every gate passes"
    )


def stages_of(rollout: Rollout) -> tuple[Stage, ...]:
    """The steps, and where the rollout stands among them."""
    shadows = rollout.plan.mode == "shadow" and bool(rollout.baseline)
    names = (SHADOW, LIVE) if shadows else (LIVE,)
    at = rollout.stage * len(names) + (names.index(rollout.phase) if rollout.phase in names else 0)
    found = []
    for stage, percent in enumerate(rollout.plan.stages):
        phases = tuple(
            _phase(rollout, name, stage * len(names) + number, at) for number, name in enumerate(names)
        )
        statuses = [each.status for each in phases]
        status = next((each for each in ("stopped", "now") if each in statuses), statuses[-1])
        if status == "next" and "done" in statuses:
            status = "now"
        found.append(Stage(f"{percent:g}%", status, phases))
    return tuple(found)


def _phase(rollout: Rollout, name: str, number: int, at: int) -> Phase:
    if rollout.state == COMPLETED or number < at:
        return Phase(name, "done", "done")
    if number > at:
        return Phase(name, "next", "to come")
    if rollout.state in {FAILED, ABORTED}:
        return Phase(name, "stopped", "stopped here")
    return Phase(name, "now", "now" if rollout.state == RUNNING else f"now, {rollout.state}")


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
