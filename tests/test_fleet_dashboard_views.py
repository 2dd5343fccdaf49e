"""What the pages of the dashboard show, made from rows alone: no database, no browser."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.fleet.releases import registry
from edgekit.fleet.rules.gates import GATES, Verdict
from edgekit.fleet.server.dashboard import plots, words
from edgekit.fleet.server.dashboard.queries import Group, Operations
from edgekit.fleet.server.dashboard.views import audit, comparison, devices, models, overview
from edgekit.fleet.server.dashboard.views.common import bars
from edgekit.fleet.settings import Settings
from edgekit.fleet.storage.audit import Break, Head
from edgekit.fleet.windows.comparison import Minute
from edgekit_runtime.policies import BUCKETS
from support.dashboard_rows import NAMES, NOW_S, a_rollout, a_tree
from support.dashboard_told import figures

QUIET = Operations("server-1", NOW_S + 60, int(NOW_S) - 5, 0, 0, 0, 0)


# Words


@given(st.floats(0, 1), st.integers(0, 2))
def test_a_share_reads_as_none_or_all_only_where_it_next_to_is(share: float, digits: int) -> None:
    text = words.share(share, digits)
    assert text.endswith("%")
    if 1e-5 < share < 1 - 1e-5:
        assert text not in {"0%", "100%"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89, "89 s"),
        (90, "1 min"),
        (5400, "1 h 30 min"),
        (7200, "2 h"),
        (200_000, "2 d"),
        (-5, "0 s"),
    ],
)
def test_a_stretch_of_time_is_told_in_the_unit_that_fits(seconds: int, text: str) -> None:
    assert words.duration(seconds) == text


def test_a_code_that_nobody_knows_is_shown_with_its_words_apart() -> None:
    assert words.reason("new_kind") == "new kind"
    assert words.reason("stage_never_ended") == "the phase stage was begun again and again, and never ended"


def test_every_gate_has_a_name() -> None:
    assert set(words.GATES) == set(GATES)


# Pictures


@given(
    st.sampled_from(sorted(GATES)), st.floats(0, 1.5), st.lists(st.floats(0, 3), max_size=4), st.floats(-5, 5)
)
def test_everything_lies_within_the_picture(
    gate: str, limit: float, values: list[float], value: float
) -> None:
    scale = plots.scale_of(gate, limit, values)
    assert scale.low <= scale.high
    assert 0 <= scale.place(value) <= 100


@given(st.sampled_from(sorted(GATES)), st.floats(0.01, 1), *[st.none() | st.floats(0, 2)] * 3)
def test_a_picture_has_no_style_that_the_policy_refuses(
    gate: str, limit: float, estimate: float | None, lower: float | None, upper: float | None
) -> None:
    verdict = Verdict(gate, "hold", "", limit, estimate, lower, upper)
    drawn = plots.interval(verdict, plots.scale_of(gate, limit, []))
    assert "style" not in drawn
    assert all(0 <= float(each) <= 100 for each in re.findall(r'="([\d.]+)%"', drawn))


def test_what_is_drawn_has_no_markup_of_its_labels() -> None:
    drawn = plots.columns([1], ['<script>"'], "a & b")
    assert "<script" not in drawn
    assert "a &amp; b" in drawn


def test_bars_beyond_the_most_are_one() -> None:
    found = bars({str(number): number for number in range(1, 12)}, most=4)
    assert [each.label for each in found] == ["11", "10", "9", "8 others"]
    assert found[-1].shown == "36"


# Overview


def an_overview(
    operations: Operations = QUIET, groups: tuple[Group, ...] = (), rollouts: Any = ()
) -> overview.Overview:
    settings = Settings(Path("/nowhere"))
    return overview.overview(groups, rollouts, [], operations, NAMES, settings, NOW_S, 3.0)


def test_devices_are_counted_by_what_they_are_and_revoked_ones_apart() -> None:
    groups = (
        Group({"region": "eu", "hardware": "pi5"}, "a" * 64, False, "minutes", 7),
        Group({"region": "us"}, "b" * 64, False, "older", 3),
        Group({"region": "us"}, "", True, "never", 2),
    )
    found = an_overview(groups=groups)
    assert found.facts[0].value == "10"
    assert found.facts[0].note == "and 2 revoked"
    assert [each.title for each in found.breakdowns] == [
        "Hardware",
        "Region",
        "Version that serves",
        "Last heard of",
    ]
    assert [(each.label, each.shown) for each in found.breakdowns[1].bars] == [("eu", "7"), ("us", "3")]
    assert [each.shown for each in found.breakdowns[3].bars] == ["7", "0", "0", "0", "3", "0"]


@pytest.mark.parametrize(
    ("change", "name", "word"),
    [
        ({}, "Conductor", "Well"), ({"until_s": NOW_S - 1}, "Conductor", "Overdue"),
        ({"looked_s": int(NOW_S) - 3600}, "Conductor", "Overdue"),
        ({"unmerged": 3, "oldest_s": int(NOW_S) - 900}, "Windows to count", "Overdue"),
        ({"undelivered": 1}, "Webhooks", "Failing"), ({"pending": 1}, "Signatures", "Pending"),
    ],
)  # fmt: skip
def test_health_tells_what_is_late(change: dict[str, Any], name: str, word: str) -> None:
    found = an_overview(replace(QUIET, **change), rollouts=[a_tree(a_rollout())])
    assert {each.name: each.tag.text for each in found.checks}[name] == word


def test_nobody_waits_for_a_conductor_where_no_rollout_is_open() -> None:
    found = an_overview(replace(QUIET, holder="", until_s=0, looked_s=0))
    assert found.checks[0].tag.text == "Well"


# Comparison, models, devices, audit


def a_comparison(minutes: list[Minute], **wanted: str) -> comparison.ComparisonPage:
    asked = comparison.Filter.of(wanted.get("stage", ""), wanted.get("part", ""), wanted.get("period", ""))
    return comparison.page_of(a_tree(a_rollout()), minutes, ["region=eu"], asked, NAMES, "")


def test_a_comparison_shows_pairs_flips_and_both_latencies() -> None:
    random = np.random.default_rng(1)
    minutes = [Minute(number, 3, figures(random, 400, 0.0)) for number in range(5)]
    found = a_comparison(minutes)
    assert not found.is_empty
    assert " → " in found.pairs[0].label
    assert [name for name, *_ in found.quantiles] == ["p50", "p90", "p99"]
    assert found.latency is not None
    assert found.flips
    series = comparison.series_of(minutes)
    lengths = {name: len(values) for name, values in series.items() if name != "inputs"}
    assert set(lengths.values()) == {5}
    assert len(series["inputs"][0]["psi"]) == 5


def test_nothing_compared_is_an_empty_page() -> None:
    found = a_comparison([])
    assert found.is_empty
    assert comparison.series_of([])["at"] == []


@given(st.text(max_size=8), st.text(max_size=300), st.text(max_size=8))
def test_any_address_is_a_filter(stage: str, part: str, period: str) -> None:
    found = comparison.Filter.of(stage, part, period)
    assert found.period in comparison.PERIODS
    assert found.since_s(NOW_S) >= 0


def a_version(release: str, version: str, parent: str = "", **figures_of: float) -> registry.Version:
    return registry.Version(
        release,
        "door",
        version,
        parent,
        "signed",
        100,
        {"onnx": 100},
        {},
        {"onnx": figures_of},
        True,
        "",
        1,
        "pia",
    )


def test_a_circle_of_parents_ends() -> None:
    first, second = a_version("a" * 64, "1.0", "b" * 64), a_version("b" * 64, "1.1", "a" * 64)
    page = models.page_of(second, [first, second], [], {}, 0, NOW_S)
    assert len(page.parents) == models.MOST_PARENTS


def test_figures_stand_beside_those_of_the_parent() -> None:
    first, second = a_version("a" * 64, "1.0", metric=0.90), a_version("b" * 64, "1.1", "a" * 64, metric=0.93)
    (file,) = models.page_of(second, [first, second], [], {}, 0, NOW_S).files
    assert (file.cells[0].value, file.cells[0].before, file.cells[0].change) == ("93%", "90%", "+3.00 points")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, "Well"), ({"revoked": True}, "Revoked"), ({"seen_s": 0}, "Not heard of yet"),
        ({"seen_s": NOW_S - 10**6}, "Silent"), ({"phase": "rollback"}, "Rolling back"),
    ],
)  # fmt: skip
def test_a_device_is_well_or_says_why_not(change: dict[str, Any], word: str) -> None:
    row = {
        "id": "d1", "labels": {"region": "eu"}, "live": "a" * 64, "phase": "idle", "revoked": False,
        "seen_s": NOW_S - 30, "channel": "stable", **change,
    }  # fmt: skip
    assert devices.row_of(row, NAMES, NOW_S, 86400).state.text == word


def test_a_device_tells_in_words_why_it_refused_a_version() -> None:
    row = {
        "id": "d1", "labels": {}, "live": "a" * 64, "candidate": "", "last_good": "", "phase": "idle",
        "revoked": False, "pinned": False, "seen_s": NOW_S, "enrolled_s": 1, "channel": "stable",
        "status": {"failed": {"b" * 64: "golden"}},
    }  # fmt: skip
    report = {"received_s": NOW_S - 60, "release": "b" * 64, "kind": "refused", "reason": "no_memory"}
    page = devices.page_of(row, [report], {int(NOW_S) // 3600: 4}, [], NAMES, NOW_S, 86400, may=True)
    assert "golden inputs" in page.failures[0].says
    assert page.events[0].why == "there was not enough memory"
    assert (page.windows, page.may_revoke) == (4, True)


def test_the_chain_says_where_it_is_broken() -> None:
    assert audit.chain_of(None, Head(3, "f" * 64)).tag.text == "Whole"
    broken = audit.chain_of(Break(2, "the row is missing"), Head(3, "f" * 64))
    assert (broken.tag.text, broken.says) == ("Broken", "Row 2: the row is missing.")


def test_a_bound_is_told_as_a_share_of_the_cohort() -> None:
    assert words.bound(BUCKETS) == "100%"
    assert words.bound(BUCKETS // 400) == "0.25%"
