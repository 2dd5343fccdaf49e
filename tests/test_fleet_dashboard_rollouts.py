"""What the page of a rollout shows, made from rows alone: no database, no browser."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.fleet.server.dashboard.views import gates, rollout, steps
from support.dashboard_rows import NAMES, NOW_S, a_look, a_rollout, a_tree, a_verdict

START = "Stage 1 of 4 runs in the shadow of 1%"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ["now", "next", "next", "next"]),
        ({"stage": 2, "phase": "live"}, ["done", "done", "now", "next"]),
        ({"stage": 1, "phase": "live", "state": "failed"}, ["done", "stopped", "next", "next"]),
        ({"stage": 3, "phase": "live", "state": "completed"}, ["done"] * 4),
    ],
)
def test_the_stepper_shows_where_a_rollout_stands(change: dict[str, Any], expected: list[str]) -> None:
    found = steps.stages_of(a_rollout(**change))
    assert [each.status for each in found] == expected
    assert [each.share for each in found] == ["1%", "10%", "50%", "100%"]


def test_without_a_version_before_there_is_no_shadow() -> None:
    found = steps.stages_of(replace(a_rollout(phase="live"), baseline=""))
    assert [phase.name for phase in found[0].phases] == ["live"]


@pytest.mark.parametrize(
    ("change", "look", "line"),
    [
        ({}, None, f"{START}; the gates have not been looked at yet."),
        (
            {"shadow_bound": 10_000, "counted_s": 900.0, "soaked_s": 600.0}, a_look(a_verdict()),
            f"{START}; every gate passes, and it soaks 50 min more.",
        ),
        (
            {"shadow_bound": 10_000}, a_look(a_verdict(outcome="hold"), a_verdict("drift", "hold")),
            f"{START}; waits for “Agreement with live” and “Drift of confidence”.",
        ),
        ({"shadow_bound": 2500}, a_look(a_verdict()), f"{START}; every gate passes, and it grows from 0.25%."),
        ({"state": "held", "why": "no verdict"}, None, f"{START}; held for a person: no verdict."),
        ({"state": "failed", "why": "stopped at 1%"}, None, "Stopped at 1%."),
    ],
)  # fmt: skip
def test_a_line_says_what_a_rollout_waits_for(change: dict[str, Any], look: Any, line: str) -> None:
    assert steps.line_of(a_rollout(**change), look) == line


@pytest.mark.parametrize(
    ("state", "words_of"),
    [
        ("running", ["promote", "pause", "abort"]), ("paused", ["resume", "promote", "abort"]),
        ("held", ["resume", "promote", "pause", "abort"]), ("failed", []), ("aborted", []), ("completed", []),
    ],
)  # fmt: skip
def test_buttons_are_those_that_the_state_takes(state: str, words_of: list[str]) -> None:
    assert [each.word for each in rollout.buttons_of(a_rollout(state=state))] == words_of


def test_what_completed_is_rolled_back_while_its_channel_is_settled_on_it() -> None:
    assert [each.word for each in rollout.buttons_of(a_rollout(state="completed"), settled=True)] == [
        "rollback"
    ]


def test_who_may_not_has_neither_buttons_nor_dialogs() -> None:
    tree = a_tree(a_rollout())
    page = rollout.page_of(tree, [], [], NAMES, NOW_S, may=False)
    assert page.buttons == page.dialogs == ()
    assert rollout.page_of(tree, [], [], NAMES, NOW_S, may=True).buttons


def test_a_look_at_an_earlier_step_says_nothing_of_this_one() -> None:
    page = rollout.page_of(a_tree(a_rollout(stage=1), a_look(a_verdict())), [], [], NAMES, NOW_S, may=False)
    assert page.gates == ()
    assert page.looked is None


def test_gates_that_stop_come_first_and_say_what_they_ask_for() -> None:
    told = [
        a_verdict("drift", limit=0.25),
        a_verdict("errors", "hold", limit=0.01),
        a_verdict(outcome="fail", slice="region=eu"),
    ]
    found = gates.gates_of([each.to_tree() for each in told])
    assert [each.name for each in found] == ["agreement", "errors", "drift"]
    assert (found[0].limit, found[0].between, found[0].part) == ("≥ 95%", "96% to 99%", "region=eu")
    assert found[1].limit == "≤ 1%"


def test_an_interval_that_is_open_runs_over_the_edge_of_its_history() -> None:
    looks = [a_look(a_verdict(lower=None, upper=None), meant=10, taken=number) for number in (5, 10)]
    found = gates.history_of(looks)
    (gate,) = found["gates"]
    assert found["bound"] == [1.0, 1.0]
    assert found["have"] == [0.5, 1.0]
    assert gate["lower"] == [gate["low"]] * 2
    assert gate["upper"] == [gate["high"]] * 2


def test_steps_of_a_history_are_where_stage_or_phase_changed() -> None:
    looks = [a_look(), a_look(phase="live"), a_look(stage=1), a_look(stage=1)]
    found = gates.history_of([{**each, "at_s": number} for number, each in enumerate(looks)])
    assert [(each["at"], each["stage"], each["phase"]) for each in found["steps"]] == [
        (1, 1, "live"),
        (2, 2, "shadow"),
    ]
