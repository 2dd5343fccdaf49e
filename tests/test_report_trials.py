"""The report of a search: a point and a row for every trial, the limits as lines, and no text that is not escaped."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
from tests.support.sample_report import accepted

from edgekit.drawing.charts import Point, scatter
from edgekit.recipe import Budget
from edgekit.report import render_html
from edgekit.report.trials import view
from edgekit.search import Calibration, Measured, Outcome, Setting, Trial, trial_table

BUDGET = Budget(max_drop=0.01, max_latency_ms=2.0)


def searched(*, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """A report whose first trial was too slow, whose second lost too much and whose third holds."""
    calibration = Calibration(("minmax",))
    rows = ((0.0, 0.001, 3.0), (0.6, 0.03, 1.1), (0.4, 0.006, 1.7))
    trials = [
        Trial(
            n,
            Setting(calibration, prune, names),
            Outcome({"onnx": Measured(0.9 - drop, drop, ms, 6.0, 1_000_000 - 1000 * n)}),
        )
        for n, (prune, drop, ms) in enumerate(rows)
    ]
    trials.append(Trial(3, Setting(calibration, 0.9), failure="the loss is no number"))
    report = copy.deepcopy(accepted())
    report["budget"] |= {"max_drop": 0.01, "max_latency_ms": 2.0, "max_size_mb": None}
    return report | {"trials": trial_table(trials, BUDGET), "trial": 2}


def test_without_a_search_the_report_shows_none() -> None:
    assert view(accepted()) is None
    assert "What was tried" not in render_html(accepted())


def test_every_trial_has_a_row_and_every_measured_one_a_point_in_both_charts() -> None:
    shown = view(searched())
    assert shown is not None
    assert [row["number"] for row in shown["rows"]] == [0, 1, 2, 3]
    assert [row["feasible"] for row in shown["rows"]] == [False, False, True, False]
    assert [row["chosen"] for row in shown["rows"]] == [False, False, True, False]
    assert "no number" in shown["rows"][3]["why"]
    for chart in shown["charts"]:
        assert chart["drawn"].count("<circle") == 3
        assert chart["drawn"].count('class="fill chosen"') == 1
    latency, size = shown["charts"]
    assert latency["drawn"].count('class="limit"') == 2
    assert size["drawn"].count('class="limit"') == 1


def test_points_left_of_the_limit_are_drawn_left_of_its_line() -> None:
    shown = view(searched())
    assert shown is not None
    drawn = shown["charts"][0]["drawn"]
    (line,) = re.findall(r'class="limit" x1="([0-9.]+)%" x2="\1%"', drawn)
    places = [float(x) for x in re.findall(r'cx="([0-9.]+)%"', drawn)]
    assert [x < float(line) for x in places] == [False, True, True]


def test_better_is_higher() -> None:
    shown = view(searched())
    assert shown is not None
    heights = [float(y) for y in re.findall(r'cy="([0-9.]+)"', shown["charts"][0]["drawn"])]
    assert heights[0] < heights[2] < heights[1]


def test_names_of_layers_are_escaped() -> None:
    report = searched(names=("<script>",))
    report["trials"][0]["why"] = "<script>alert(1)</script>"
    page = render_html(report)
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("y", [0.0, -0.5, 1e9])
def test_a_single_point_without_limits_is_drawn_inside(y: float) -> None:
    drawn = scatter(
        [Point(0.0, y, "only", "good")], title="one", x_limit=None, y_limit=None, x_shown=str, y_shown=str
    )
    (x,) = re.findall(r'cx="([0-9.]+)%"', drawn)
    (cy,) = re.findall(r'cy="([0-9.]+)"', drawn)
    assert 0 <= float(x) <= 100
    assert math.isfinite(float(cy))
    assert 0 <= float(cy) <= 240
