"""Both arms of an A/B comparison, side by side: intervals of each arm's mean, and of their difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from edgekit.fleet.server.dashboard import plots, words
from edgekit.fleet.server.dashboard.views.common import Fact, Tag

# Around the means, in effects that matter: an interval that is wider runs over the edge.
ROOM: Final = 3.0
TONES: Final[Mapping[str, str]] = {
    "better": "good", "no difference": "good", "no worse": "good", "worse": "bad", "arms are uneven": "bad",
    "inconclusive": "warn",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One measure.

    Attributes:
        title: in words.
        tag: its verdict.
        both: intervals of the candidate's and the control's mean, on one axis.
        ends: left and right end of that axis.
        apart: interval of the difference; what does not matter is marked.
        apart_ends: ends of that axis.
        candidate: mean in words.
        control: likewise.
        difference: in words.
        between: interval of the difference in words.
        note: pairs of devices, and from what on a difference matters.
    """

    title: str
    tag: Tag
    both: Markup
    ends: tuple[str, str]
    apart: Markup
    apart_ends: tuple[str, str]
    candidate: str
    control: str
    difference: str
    between: str
    note: str


@dataclass(frozen=True, slots=True)
class ArmsView:
    """The section.

    Attributes:
        tag: verdict of all measures together.
        measures: each of them.
        facts: devices of both arms, whether they are even, drift.
    """

    tag: Tag
    measures: tuple[MeasureRow, ...]
    facts: tuple[Fact, ...]


def arms_of(look: Mapping[str, Any] | None) -> ArmsView | None:
    """The section of a look; None where it has no arms."""
    tree = look["counts"].get("arms") if look else None
    if not tree:
        return None
    even = "even" if tree["ratio_p"] >= tree["ratio_alpha"] else "not even"
    facts = [
        Fact("Candidate", words.count(tree["candidate"]), "devices heard of lately"),
        Fact("Control", words.count(tree["control"]), "stay on the version before"),
        Fact("Shares", even, f"p {tree['ratio_p']:.3g}, limit {tree['ratio_alpha']:.2g}"),
    ]
    if tree["psi"] is not None:
        facts.append(
            Fact(
                "Drift of confidence",
                f"{tree['psi']:.3f}",
                f"Jensen-Shannon {tree['jensen_shannon']:.4f} bit",
            )
        )
    rows = tuple(_row(each) for each in tree["measures"])
    return ArmsView(_tag(tree["verdict"]), rows, tuple(facts))


def _row(tree: Mapping[str, Any]) -> MeasureRow:
    name, arms, says = tree["name"], (tree["candidate"], tree["control"]), tree["says"]
    known = [each["mean"] for each in arms if each["mean"] is not None]
    scale = _scale(name, known, tree["effect"])
    candidate, control = (_shown(name, each["mean"]) for each in arms)
    both = Markup("")
    if known:
        described = f"Mean of {says}: candidate {candidate}, control {control}"
        tones = zip(("candidate", "live"), arms, strict=True)
        rows = [(tone, each["mean"], each["lower"], each["upper"]) for tone, each in tones]
        both = plots.spans(rows, scale, described=described)
    wide = max(ROOM * tree["effect"], 1.2 * abs(tree["difference"] or 0.0))
    between = _between(name, tree["lower"], tree["upper"])
    effect = _apart(name, tree["effect"]).lstrip("+")
    counted = f"{words.count(tree['pairs'])} pairs of devices; from {effect} on it matters"
    return MeasureRow(
        title=says, tag=_tag(tree["verdict"]), both=both, ends=(_shown(name, scale.low), _shown(name, scale.high)),
        apart=_difference(tree, wide, between), apart_ends=(_apart(name, -wide), _apart(name, wide)),
        candidate=candidate, control=control,
        difference=words.NONE if tree["difference"] is None else _apart(name, tree["difference"]),
        between=between, note=counted if tree["decides"] else f"{counted}; decides nothing",
    )  # fmt: skip


def _difference(tree: Mapping[str, Any], wide: float, between: str) -> Markup:
    """The interval of a difference beside what does not matter."""
    if tree["difference"] is None:
        return Markup("")
    name, effect = tree["name"], tree["effect"]
    # Of a ratio, as much slower as faster is not as many percent.
    zone = (1 / (1 + effect) - 1, effect) if name == "latency_ms" else (-effect, effect)
    tone = "bad" if tree["verdict"] == "worse" else "candidate"
    described = f"Difference of {tree['says']}: {_apart(name, tree['difference'])}, {between}"
    row = (tone, tree["difference"], tree["lower"], tree["upper"])
    return plots.spans([row], plots.Scale(-wide, wide), zone=zone, described=described)


def _scale(name: str, known: Sequence[float], effect: float) -> plots.Scale:
    if not known:
        return plots.Scale(0.0, 1.0)
    room = ROOM * effect * (max(known) if name == "latency_ms" else 1.0)
    high = max(known) + room
    return plots.Scale(max(0.0, min(known) - room), high if name == "latency_ms" else min(1.0, high))


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return words.NONE
    if name == "latency_ms":
        return f"{value:.3g} ms"
    return f"{value:.3f}" if name == "confidence" else words.share(value, 2)


def _apart(name: str, value: float, *, unit: bool = True) -> str:
    if name == "confidence":
        return f"{value:+.3f}"
    after = "" if not unit else "%" if name == "latency_ms" else " points"
    return f"{100 * value:+.{1 if name == 'latency_ms' else 2}f}{after}"


def _between(name: str, lower: float | None, upper: float | None) -> str:
    if lower is None and upper is None:
        return "anything yet"
    if lower is None:
        return f"at most {_apart(name, upper or 0.0)}"
    if upper is None:
        return f"at least {_apart(name, lower)}"
    return f"{_apart(name, lower, unit=False)} to {_apart(name, upper)}"


def _tag(verdict: str) -> Tag:
    return Tag(f"{verdict[:1].upper()}{verdict[1:]}", TONES.get(verdict, "quiet"))
