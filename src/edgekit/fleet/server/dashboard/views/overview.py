"""The first page: devices, rollouts that are open, what was decided lately, and whether all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.fleet.server.dashboard import plots, words
from edgekit.fleet.server.dashboard.queries import Group, Operations
from edgekit.fleet.server.dashboard.views.common import (
    Bar,
    DecisionLine,
    Fact,
    Names,
    Tag,
    bars,
    decision,
    rollout_of,
    tag_of,
    version_of,
)
from edgekit.fleet.server.dashboard.views.steps import Stage, about, line_of, look_of, stages_of
from edgekit.fleet.settings import Settings
from edgekit.fleet.windows.belonging import values_of

# Labels that fleets have, in the order in which people ask for them.
FIRST_LABELS: Final = ("hardware", "region")
MOST_LABELS: Final = 2
SEEN: Final[Mapping[str, str]] = {
    "minutes": "last 15 minutes", "hour": "last hour", "day": "last day", "week": "last week",
    "older": "longer ago", "never": "never",
}  # fmt: skip
# Rounds of the conductor or of the merging that may be late before anybody is told.
LATE: Final = 6
LATEST_S: Final = 300
SLOW_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Devices by something.

    Attributes:
        title: by what.
        bars: of each value.
    """

    title: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class RolloutCard:
    """An open rollout.

    Attributes:
        id: of it.
        title: model and version.
        state: of it.
        line: what it does now, in a sentence.
        about: mode, cohort and channel.
        stages: as on its own page.
        failing: verdicts that do not pass, in words.
    """

    id: str
    title: str
    state: Tag
    line: str
    about: str
    stages: tuple[Stage, ...]
    failing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that should be well.

    Attributes:
        name: of it.
        tag: how it is.
        says: in words.
    """

    name: str
    tag: Tag
    says: str


@dataclass(frozen=True, slots=True)
class Overview:
    """The page.

    Attributes:
        facts: figures at the top.
        rollouts: that are open.
        breakdowns: of the devices.
        decisions: the last ones.
        checks: of the server's own work.
        devices: altogether.
        versions: published.
    """

    facts: tuple[Fact, ...]
    rollouts: tuple[RolloutCard, ...]
    breakdowns: tuple[Breakdown, ...]
    decisions: tuple[DecisionLine, ...]
    checks: tuple[Check, ...]
    devices: int
    versions: int


def overview(
    groups: Sequence[Group],
    rollouts: Sequence[Mapping[str, Any]],
    decisions: Sequence[Mapping[str, Any]],
    operations: Operations,
    names: Names,
    settings: Settings,
    now_s: float,
    database_ms: float,
) -> Overview:
    """The page from its rows.

    Args:
        groups: of the devices.
        rollouts: that are open, with their last look.
        decisions: newest first.
        operations: how the server's own work stands.
        names: of releases.
        settings: of the fleet.
        now_s: seconds since 1970.
        database_ms: that the queries took.
    """
    alive = [each for each in groups if not each.revoked]
    whole = sum(each.count for each in alive)
    day = sum(each.count for each in alive if each.age in {"minutes", "hour", "day"})
    facts = (
        Fact("Devices", words.count(whole), _revoked(sum(each.count for each in groups) - whole)),
        Fact(
            "Heard of in a day",
            words.share(day / whole) if whole else words.NONE,
            f"{words.count(day)} devices",
        ),
        Fact("Open rollouts", str(len(rollouts)), "one of a model at a time"),
        Fact("Versions", words.count(len(names)), f"{operations.pending} pending a signature"),
    )
    return Overview(
        facts, tuple(_card(each) for each in rollouts), _breakdowns(alive, names),
        tuple(decision(each, now_s, f"{each['model']} {each['version']}") for each in decisions),
        _checks(operations, alive, rollouts, settings, now_s, database_ms), whole, len(names),
    )  # fmt: skip


def _revoked(number: int) -> str:
    return f"and {number} revoked" if number else "none revoked"


def _card(tree: Mapping[str, Any]) -> RolloutCard:
    found = rollout_of(tree)
    look = look_of(tree, found)
    verdicts = look["verdicts"] if look else ()
    failing = tuple(
        f"{words.GATES.get(each['gate'], each['gate'])}: {each['why']}"
        for each in verdicts
        if each["outcome"] != "pass"
    )
    return RolloutCard(
        found.id, f"{found.model} {tree['version']}", tag_of(words.STATES, found.state),
        line_of(found, look), about(found), stages_of(found), failing[:3],
    )  # fmt: skip


def _breakdowns(groups: Sequence[Group], names: Names) -> tuple[Breakdown, ...]:
    few = values_of(each.labels for each in groups)
    ordered: list[str] = [name for name in FIRST_LABELS if name in few]
    ordered += [name for name in sorted(few) if name not in FIRST_LABELS]
    found = []
    for name in ordered[:MOST_LABELS]:
        counts: Counter[str] = Counter()
        for each in groups:
            counts[each.labels.get(name, "")] += each.count
        found.append(Breakdown(name.capitalize(), bars(counts)))
    live: Counter[str] = Counter()
    links: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for each in groups:
        version = version_of(names, each.live)
        live[version.name] += each.count
        links[version.name] = f"versions/{version.id}" if version.id else ""
        seen[each.age] += each.count
    return (
        *found,
        Breakdown("Version that serves", bars(live, links=links)),
        Breakdown("Last heard of", _heard(seen)),
    )


def _heard(seen: Mapping[str, int]) -> tuple[Bar, ...]:
    """In the order of time, those of which there are none, too."""
    full, whole = max(seen.values(), default=0), sum(seen.values())
    return tuple(
        Bar(text, plots.track(seen[age], full, "live"), words.count(seen[age]),
            words.share(seen[age] / whole, 0) if whole else "")
        for age, text in SEEN.items()
    )  # fmt: skip


def _checks(
    operations: Operations,
    groups: Sequence[Group],
    rollouts: Sequence[Mapping[str, Any]],
    settings: Settings,
    now_s: float,
    database_ms: float,
) -> tuple[Check, ...]:
    unmerged, undelivered, pending = operations.unmerged, operations.undelivered, operations.pending
    waits_s = now_s - operations.oldest_s if unmerged else 0
    silent = sum(each.count for each in groups if each.age in {"older", "never"})
    return (
        _conductor(operations, bool(rollouts), settings, now_s),
        _check(
            "Database", "Slow" if database_ms > SLOW_MS else "", "warn",
            f"answered in {database_ms:.0f} ms" if database_ms > SLOW_MS else "answers at once",
        ),
        _check(
            "Windows to count", "Overdue" if waits_s > LATEST_S else "", "bad",
            f"{words.count(unmerged)} wait, the first since {words.duration(waits_s)}" if unmerged else "none waits",
        ),
        _check(
            "Devices", "Look" if silent else "", "warn",
            f"{words.count(silent)} not heard of for a week" if silent else "all heard of in a week",
        ),
        _check(
            "Webhooks", "Failing" if undelivered else "", "warn",
            f"{undelivered} messages are tried again" if undelivered else "nothing waits",
        ),
        _check(
            "Signatures", "Pending" if pending else "", "warn",
            f"{_versions(pending)}: edgekit fleet sign --key KEY" if pending else "all signed",
        ),
    )  # fmt: skip


def _check(name: str, wrong: str, tone: str, says: str) -> Check:
    return Check(name, Tag(wrong, tone) if wrong else Tag("Well", "good"), says)


def _conductor(operations: Operations, is_needed: bool, settings: Settings, now_s: float) -> Check:
    if not is_needed:
        return _check("Conductor", "", "bad", "nothing to look at")
    late_s = max(LATEST_S, LATE * settings.look_every_s)
    is_late = operations.until_s <= now_s or now_s - operations.looked_s > late_s
    says = f"last look {words.ago(operations.looked_s, now_s)}"
    if is_late:
        return _check("Conductor", "Overdue", "bad", f"{says}; edgekit fleet serve DIR")
    return _check("Conductor", "", "", says)


def _versions(number: int) -> str:
    return "1 version waits" if number == 1 else f"{number} versions wait"
