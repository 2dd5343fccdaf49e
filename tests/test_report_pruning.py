"""The report of pruning: a row and a line for everything that could go, on one scale, and no text unescaped."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest
from tests.support.sample_report import accepted

from edgekit.drawing.charts import LINE_HEIGHT, LINE_WIDTH, line
from edgekit.report import PruningResult, render_html
from edgekit.report.pruning import view

ROWS = (
    PruningResult("features.0", False, 32, 24, (8, 16, 24, 32), (2.0, 0.5, 0.1, 0.0)),
    PruningResult("features.2", False, 16, 16, (8, 16), (4.0, 0.0)),
    PruningResult("block.a … block.b", True, 1, 0, (0, 1), (0.25, 0.0)),
    PruningResult("block.c … block.d", True, 1, 1, (0, 1), (3.5, 0.0)),
)


def pruned(*rows: PruningResult) -> dict[str, Any]:
    return accepted() | {"pruning": [asdict(each) for each in rows]}


def dot(drawn: str) -> tuple[float, float]:
    found = re.search(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert found
    return float(found[1]), float(found[2])


def points(drawn: str) -> list[tuple[float, float]]:
    found = re.search(r'points="([^"]+)"', drawn)
    assert found
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_without_pruning_the_report_shows_none() -> None:
    assert view(accepted()) == []
    assert view({**accepted(), "pruning": None}) == []
    assert "What was pruned" not in render_html(accepted())


def test_every_row_says_what_went() -> None:
    shown = view(pruned(*ROWS))
    assert [row["went"] for row in shown] == ["32 → 24", "16", "left out", "kept"]
    assert [row["changed"] for row in shown] == [True, False, True, False]
    assert [row["most"] for row in shown] == ["2 with 8", "4 with 8", "0.25 with none", "3.5 with none"]
    document = render_html(pruned(*ROWS))
    assert document.count('<svg class="line"') == 4
    assert document.count("residual branch") == 2


def test_lines_share_a_scale_and_the_dot_lies_on_the_width_that_stayed() -> None:
    first, second, third, _ = (row["drawn"] for row in view(pruned(*ROWS)))
    # 0.25 was accepted, so what does a damage of 1 or more is cut off.
    assert points(second)[0][1] == points(first)[0][1] == 4.0
    assert points(first)[0][1] < points(first)[1][1] < points(third)[0][1] < points(third)[1][1]
    assert dot(first) == points(first)[2]
    assert dot(third) == points(third)[0]
    for x, y in [p for drawn in (first, second, third) for p in points(drawn)]:
        assert 0 <= x <= LINE_WIDTH
        assert 0 <= y <= LINE_HEIGHT


def test_a_width_between_two_that_were_measured_lies_on_the_line() -> None:
    drawn = line([(0.0, 4.0), (8.0, 0.0)], top=4.0, marked=4.0)
    (left, high), (right, low) = points(drawn)
    assert dot(drawn) == ((left + right) / 2, (high + low) / 2)


@pytest.mark.parametrize("top", [0.0, 1.0])
def test_a_line_of_zeros_lies_on_the_ground(top: float) -> None:
    drawn = line([(1.0, 0.0), (2.0, 0.0)], top=top, marked=2.0)
    assert {y for _, y in points(drawn)} == {LINE_HEIGHT - 4.0}


def test_names_from_the_model_are_escaped() -> None:
    document = render_html(pruned(PruningResult('<b>"x"', False, 8, 4, (4, 8), (1.0, 0.0))))
    assert "<b>" not in document
    assert "&lt;b&gt;" in document
