"""Models and their versions: where each comes from, how good it is, who may run it, and who runs it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgekit.drawing import numbers
from edgekit.fleet.releases import registry
from edgekit.fleet.server.dashboard import words
from edgekit.fleet.server.dashboard.views.common import SHORT, Fact, Tag, When, tag_of

FORMATS: Final[Mapping[str, str]] = {"onnx": "ONNX", "tflite": "TFLite", "coreml": "Core ML"}
LINEAGE: Final[Mapping[str, str]] = {
    "model_sha256": "Source model", "recipe_sha256": "Recipe", "calibration_sha256": "Calibration data",
    "seed": "Seed", "command": "Command",
}  # fmt: skip
FIGURES: Final[Mapping[str, str]] = {
    "metric": "Metric", "drop": "Drop against float", "agreement": "Agreement with float", "size_bytes": "Size",
    "latency_p50_ms": "Latency, median", "speedup": "Speed-up", "snr_db": "Signal to noise",
}  # fmt: skip
MOST_PARENTS: Final = 12


@dataclass(frozen=True, slots=True)
class Row:
    """A version in the list.

    Attributes:
        id: of its release.
        version: name.
        state: of it.
        accepted: by its report.
        parent: name, "" for none.
        metric: of its best file.
        size: of its smallest file.
        latency: of its fastest file.
        devices: on which it serves.
        channels: that are settled on it.
        published: when.
        by: whom.
    """

    id: str
    version: str
    state: Tag
    accepted: Tag
    parent: str
    metric: str
    size: str
    latency: str
    devices: str
    channels: tuple[str, ...]
    published: When
    by: str


@dataclass(frozen=True, slots=True)
class Settled:
    """What a channel is settled on.

    Attributes:
        channel: name.
        cohort: for whom, in words.
        version: name.
        release: id.
    """

    channel: str
    cohort: str
    version: str
    release: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model with its versions.

    Attributes:
        name: of it.
        rows: newest first.
        settled: channels of it.
    """

    name: str
    rows: tuple[Row, ...]
    settled: tuple[Settled, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure beside that of the parent.

    Attributes:
        label: name of the figure.
        value: of this version.
        before: of its parent, "" where there is none.
        change: in words.
    """

    label: str
    value: str
    before: str
    change: str


@dataclass(frozen=True, slots=True)
class File:
    """A format of a version.

    Attributes:
        title: of the format.
        cells: its figures.
    """

    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class VersionPage:
    """The page of a version.

    Attributes:
        id: of its release.
        model: name.
        version: name.
        state: of it.
        accepted: by its report.
        facts: figures at the top.
        lineage: (what, value) of where it comes from.
        parents: (id, name) from the first to its parent.
        files: figures by format.
        reasons: why its report refuses it.
        notes: of the publisher.
        settled: channels of it.
        published: when.
        by: whom.
    """

    id: str
    model: str
    version: str
    state: Tag
    accepted: Tag
    facts: tuple[Fact, ...]
    lineage: tuple[tuple[str, str], ...]
    parents: tuple[tuple[str, str], ...]
    files: tuple[File, ...]
    reasons: tuple[str, ...]
    notes: str
    settled: tuple[Settled, ...]
    published: When
    by: str


def models_of(
    versions: Sequence[registry.Version],
    channels: Sequence[Mapping[str, Any]],
    running: Mapping[str, int],
    now_s: float,
) -> tuple[Model, ...]:
    """All models from their rows, by name.

    Args:
        versions: newest first.
        channels: with what they are settled on.
        running: release to devices on which it serves.
        now_s: seconds since 1970.
    """
    by_id = {each.id: each for each in versions}
    rows: dict[str, list[Row]] = defaultdict(list)
    for each in versions:
        rows[each.model].append(_row(each, by_id, channels, running, now_s))
    return tuple(
        Model(name, tuple(found), settled_of(channels, model=name)) for name, found in sorted(rows.items())
    )


def settled_of(
    channels: Sequence[Mapping[str, Any]], *, model: str = "", release: str = ""
) -> tuple[Settled, ...]:
    """What channels of a model are settled on, or those that are settled on a release."""
    return tuple(
        Settled(channel["name"], each["cohort"] or "everybody", each["version"], each["release"])
        for channel in channels
        for each in channel["settled"]
        if (channel["model"] == model if model else each["release"] == release)
    )


def page_of(
    found: registry.Version,
    versions: Sequence[registry.Version],
    channels: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
    running: int,
    now_s: float,
) -> VersionPage:
    """The page of a version from its rows.

    Args:
        found: the version.
        versions: of its model.
        channels: with what they are settled on.
        report: of its bundle, {} where there is none.
        running: devices on which it serves.
        now_s: seconds since 1970.
    """
    by_id = {each.id: each for each in versions}
    parent = by_id.get(found.parent)
    reasons = report.get("reasons")
    facts = (
        Fact("Metric", _best(found, "metric"), _metric_name(report)),
        Fact("Smallest file", _best(found, "size_bytes"), f"{numbers.size(found.size_bytes)} altogether"),
        Fact("Fastest file", _best(found, "latency_p50_ms"), "median, where it was measured"),
        Fact("Serves on", words.count(running), "devices"),
    )
    return VersionPage(
        found.id, found.model, found.version, tag_of(words.STATES, found.state), accepted_of(found), facts,
        tuple((label, _shown(found.lineage[key])) for key, label in LINEAGE.items() if key in found.lineage),
        _parents(found, by_id), _files(found, parent),
        tuple(str(each) for each in reasons) if isinstance(reasons, list) else (),
        found.notes, settled_of(channels, release=found.id), When.ago(found.published_s, now_s), found.published_by,
    )  # fmt: skip


def accepted_of(version: registry.Version) -> Tag:
    """What the report says of a version."""
    if version.accepted is None:
        return Tag("No report", "quiet")
    return Tag("Accepted", "good") if version.accepted else Tag("Missed its budget", "bad")


def _row(
    version: registry.Version,
    by_id: Mapping[str, registry.Version],
    channels: Sequence[Mapping[str, Any]],
    running: Mapping[str, int],
    now_s: float,
) -> Row:
    parent = by_id.get(version.parent)
    return Row(
        version.id, version.version, tag_of(words.STATES, version.state), accepted_of(version),
        parent.version if parent else "", _best(version, "metric"), _best(version, "size_bytes"),
        _best(version, "latency_p50_ms"), words.count(running.get(version.id, 0)),
        tuple(sorted({each.channel for each in settled_of(channels, release=version.id)})),
        When.ago(version.published_s, now_s), version.published_by,
    )  # fmt: skip


def _best(version: registry.Version, key: str) -> str:
    values = [each[key] for each in version.figures.values() if key in each]
    if not values:
        return words.NONE
    return figure(key, max(values) if key == "metric" else min(values))


def figure(key: str, value: float | None) -> str:
    """A figure of a report, for people."""
    if value is None:
        return words.NONE
    if key in {"metric", "drop", "agreement"}:
        return words.share(value, 2) if abs(value) <= 1 else f"{value:.4g}"
    if key == "size_bytes":
        return numbers.size(value)
    if key == "latency_p50_ms":
        return numbers.milliseconds(value)
    return numbers.times(value) if key == "speedup" else numbers.decibels(value)


def _files(version: registry.Version, parent: registry.Version | None) -> tuple[File, ...]:
    found = []
    for form, figures in sorted(version.figures.items()):
        before = parent.figures.get(form, {}) if parent else {}
        cells = tuple(
            Cell(label, figure(key, figures[key]), figure(key, before[key]) if key in before else "",
                 _change(key, before.get(key), figures[key]))
            for key, label in FIGURES.items()
            if key in figures
        )  # fmt: skip
        found.append(File(FORMATS.get(form, form), cells))
    return tuple(found)


def _change(key: str, before: float | None, after: float) -> str:
    if before is None or before == after:
        return ""
    sign, apart = ("+" if after > before else "−"), abs(after - before)
    if key in {"metric", "drop", "agreement"} and apart <= 1:
        return f"{sign}{100 * apart:.2f} points"
    return f"{sign}{100 * apart / abs(before):.1f}%" if before else ""


def _parents(version: registry.Version, by_id: Mapping[str, registry.Version]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    parent = version.parent
    # A table that somebody forged may hold a circle.
    while parent and len(found) < MOST_PARENTS:
        known = by_id.get(parent)
        found.append((parent if known else "", known.version if known else f"{parent[:SHORT]}…"))
        parent = known.parent if known else ""
    return tuple(reversed(found))


def _metric_name(report: Mapping[str, Any]) -> str:
    baseline = report.get("baseline")
    name = baseline.get("metric") if isinstance(baseline, Mapping) else None
    return str(name) if name else "of its best file"


def _shown(value: object) -> str:
    return str(value)
