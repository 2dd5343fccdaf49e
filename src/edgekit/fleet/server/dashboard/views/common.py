"""Parts that several pages show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from markupsafe import Markup

from edgekit.fleet.rules.rollouts import Rollout
from edgekit.fleet.server.dashboard import plots, words

Names = Mapping[str, tuple[str, str]]
"""Release to model and version."""

SHORT: Final = 12


@dataclass(frozen=True, slots=True)
class Tag:
    """A word with a tone: a state, an outcome, a kind.

    Attributes:
        text: of it.
        tone: "good", "bad", "warn", "info" or "quiet", a class of the style sheet.
    """

    text: str
    tone: str


@dataclass(frozen=True, slots=True)
class When:
    """A time.

    Attributes:
        text: as people say it.
        full: in UTC, to the minute.
        machine: for programs.
    """

    text: str
    full: str
    machine: str

    @classmethod
    def ago(cls, at_s: float, now_s: float) -> When:
        """How long ago something was."""
        return cls(words.ago(at_s, now_s), words.moment(at_s), words.machine(at_s))


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a list of bars.

    Attributes:
        label: what it is.
        drawn: the bar.
        shown: the figure.
        note: small text after it.
        link: address, "" for none.
    """

    label: str
    drawn: Markup
    shown: str
    note: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure with its name.

    Attributes:
        label: of it.
        value: in words.
        note: small text below.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A version that a page names.

    Attributes:
        id: of its release, "" for none.
        name: as people call it.
    """

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class DecisionLine:
    """A decision on a rollout.

    Attributes:
        when: it was taken.
        tag: kind of it.
        why: in words.
        actor: who took it.
        rollout: id.
        about: model and version.
        stage: number of the stage, from 1.
    """

    when: When
    tag: Tag
    why: str
    actor: str
    rollout: str
    about: str
    stage: int


def tag_of(table: Mapping[str, tuple[str, str]], name: str) -> Tag:
    """A name of a table of words; one that it does not have is shown as it is."""
    return Tag(*table.get(name, (name, "quiet")))


def version_of(names: Names, release: str, *, model: str = "") -> Version:
    """How people call a release.

    Args:
        names: of all releases.
        release: id, "" for none.
        model: that the page is about, whose name is left out.
    """
    if not release:
        return Version("", "none")
    if release not in names:
        return Version("", f"{release[:SHORT]}…")
    of, version = names[release]
    return Version(release, version if of == model else f"{of} {version}")


def rollout_of(tree: Mapping[str, Any]) -> Rollout:
    """A rollout from a row that has more in it."""
    return Rollout.from_tree({each.name: tree[each.name] for each in fields(Rollout)})


def decision(row: Mapping[str, Any], now_s: float, about: str = "") -> DecisionLine:
    """A row of the table of decisions."""
    return DecisionLine(
        When.ago(row["at_s"], now_s), tag_of(words.DECISIONS, row["kind"]), row["why"], row["actor"],
        row["rollout"], about, row["stage"] + 1,
    )  # fmt: skip


def bars(
    counts: Mapping[str, int], tone: str = "live", *, most: int = 8, links: Mapping[str, str] | None = None
) -> tuple[Bar, ...]:
    """A bar for each count, the largest first; the rest is one bar."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) > most:
        rest = ordered[most - 1 :]
        ordered = [*ordered[: most - 1], (f"{len(rest)} others", sum(number for _, number in rest))]
    full, whole = max(counts.values(), default=0), sum(counts.values())
    return tuple(
        Bar(
            label or "not given", plots.track(number, full, tone), words.count(number),
            words.share(number / whole, 0) if whole else "", (links or {}).get(label, ""),
        )
        for label, number in ordered
    )  # fmt: skip
