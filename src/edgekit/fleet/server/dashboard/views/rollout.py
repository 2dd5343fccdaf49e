"""The page of a rollout: where it stands, what each gate says, and what was decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.fleet.rules.rollouts import COMPLETED, HELD, PAUSED, RUNNING, Rollout
from edgekit.fleet.server.dashboard import words
from edgekit.fleet.server.dashboard.views.arms import ArmsView, arms_of
from edgekit.fleet.server.dashboard.views.common import (
    DecisionLine,
    Fact,
    Names,
    Tag,
    Version,
    When,
    decision,
    rollout_of,
    tag_of,
    version_of,
)
from edgekit.fleet.server.dashboard.views.gates import Gate, gates_of
from edgekit.fleet.server.dashboard.views.steps import (
    Stage,
    about,
    line_of,
    look_of,
    sentence,
    stages_of,
    step_of,
)


@dataclass(frozen=True, slots=True)
class Button:
    """Something that a person may do.

    Attributes:
        word: of `steering.said`.
        label: on the button.
        says: what comes of it.
        tone: "primary", "plain", or "danger" for what takes something back.
    """

    word: str
    label: str
    says: str
    tone: str


@dataclass(frozen=True, slots=True)
class FailedDevice:
    """A device on which the release did not run.

    Attributes:
        device: id.
        code: of why.
        says: in words.
        when: it was last heard of.
    """

    device: str
    code: str
    says: str
    when: When


@dataclass(frozen=True, slots=True)
class RolloutPage:
    """The page.

    Attributes:
        id: of the rollout.
        model: name.
        version: that is rolled out.
        baseline: that the cohort returns to.
        state: of it.
        line: what it does now, in a sentence.
        about: mode, cohort and channel.
        began: when, and by whom.
        by: whom.
        stages: steps at the top.
        facts: figures of this step.
        gates: what they said last.
        arms: of an A/B comparison, None where there are none.
        looked: when that was, None where there was no look at this step yet.
        decisions: newest first.
        failures: devices on which it failed.
        buttons: that this person may press now.
        dialogs: of all that this person may ever press.
        step: stage, phase and state that the page shows, for its forms.
    """

    id: str
    model: str
    version: Version
    baseline: Version
    state: Tag
    line: str
    about: str
    began: When
    by: str
    stages: tuple[Stage, ...]
    facts: tuple[Fact, ...]
    gates: tuple[Gate, ...]
    arms: ArmsView | None
    looked: When | None
    decisions: tuple[DecisionLine, ...]
    failures: tuple[FailedDevice, ...]
    buttons: tuple[Button, ...]
    dialogs: tuple[Button, ...]
    step: str


def page_of(
    tree: Mapping[str, Any],
    decisions: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
    names: Names,
    now_s: float,
    *,
    may: bool,
    settled: bool = False,
) -> RolloutPage:
    """The page from its rows.

    Args:
        tree: the rollout, with its last look.
        decisions: newest first.
        failures: devices on which the release did not run.
        names: of releases.
        now_s: seconds since 1970.
        may: whether this person may change it.
        settled: whether its channel is settled on what it brought.
    """
    found = rollout_of(tree)
    look = look_of(tree, found)
    return RolloutPage(
        id=found.id, model=found.model, version=version_of(names, found.release, model=found.model),
        baseline=version_of(names, found.baseline, model=found.model), state=tag_of(words.STATES, found.state),
        line=line_of(found, look), about=about(found),
        began=When.ago(tree["created_s"], now_s), by=tree["created_by"], stages=stages_of(found),
        facts=_facts(found, look), gates=gates_of(look["verdicts"] if look else ()),
        arms=arms_of(tree["look"]),
        looked=When.ago(look["at_s"], now_s) if look else None,
        decisions=tuple(decision(each, now_s) for each in decisions),
        failures=tuple(
            FailedDevice(
                each["device"], each["failed"], words.reason(each["failed"]), When.ago(each["heard_s"], now_s)
            )
            for each in failures
        ),
        buttons=buttons_of(found, settled=settled) if may else (),
        dialogs=tuple(_BUTTONS.values()) if may else (), step=step_of(found),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A rollout in the list.

    Attributes:
        id: of it.
        title: model and version.
        state: of it.
        line: what it does, or why it ended.
        about: mode, cohort and channel.
        began: when.
        by: whom.
        stages: as on its page.
    """

    id: str
    title: str
    state: Tag
    line: str
    about: str
    began: When
    by: str
    stages: tuple[Stage, ...]


def rows_of(trees: Sequence[Mapping[str, Any]], now_s: float) -> tuple[Row, ...]:
    """Rollouts of the list, as they come."""
    found = [(tree, rollout_of(tree)) for tree in trees]
    return tuple(
        Row(
            each.id, f"{each.model} {tree['version']}", tag_of(words.STATES, each.state),
            sentence(each.why), about(each), When.ago(tree["created_s"], now_s),
            tree["created_by"], stages_of(each),
        )
        for tree, each in found
    )  # fmt: skip


def _facts(rollout: Rollout, look: Mapping[str, Any] | None) -> tuple[Fact, ...]:
    counts = look["counts"] if look else {}
    meant, taken, told = (int(counts.get(name, 0)) for name in ("meant", "taken", "told"))
    failed, samples = int(counts.get("failed", 0)), int(counts.get("samples", 0))
    reasons = sorted(counts.get("reasons", {}).items(), key=lambda item: -item[1])
    soak = min(rollout.soaked_s, rollout.plan.soak_s)
    part = words.share(taken / meant, 0) if meant else words.NONE
    return (
        Fact("Bound", words.bound(rollout.bound), f"of {words.bound(rollout.target)} of the cohort"),
        Fact("Devices meant", words.count(meant), "heard of lately"),
        Fact("Took it", words.count(taken), f"{part} of those meant"),
        Fact("Showed enough", words.count(told), f"{rollout.plan.limits.samples} predictions each"),
        Fact("Failed", words.count(failed), ", ".join(f"{code} {n}" for code, n in reasons[:2]) or "none"),
        Fact("Predictions", words.count(samples), "compared or served"),
        Fact("Soaked", words.duration(soak), f"of {words.duration(rollout.plan.soak_s)}"),
    )  # fmt: skip


_BUTTONS: Final[Mapping[str, Button]] = {
    "promote": Button(
        "promote", "Promote", "Takes the next step now, without waiting for the gates.", "primary"
    ),
    "resume": Button("resume", "Resume", "Goes on; the time of this step begins anew.", "primary"),
    "pause": Button(
        "pause", "Pause", "Takes no further step. Devices that have the version keep it, unless a gate fails.",
        "plain",
    ),
    "abort": Button(
        "abort", "Abort", "Ends the rollout for good. Every device returns to what is settled.", "danger"
    ),
    "rollback": Button(
        "rollback", "Roll back", "Settles the channel on the version before. Every device of the cohort returns to it.",
        "danger",
    ),
}  # fmt: skip


def buttons_of(rollout: Rollout, *, settled: bool = False) -> tuple[Button, ...]:
    """What a person may do in this state."""
    if rollout.state == COMPLETED and rollout.baseline and settled:
        return (_BUTTONS["rollback"],)
    words_of = {
        RUNNING: ("promote", "pause", "abort"),
        PAUSED: ("resume", "promote", "abort"),
        HELD: ("resume", "promote", "pause", "abort"),
    }
    return tuple(_BUTTONS[word] for word in words_of.get(rollout.state, ()))
