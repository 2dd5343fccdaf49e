"""The page on boards shows what the code gives, and the figures of the board that is compared taught nothing."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

# pytest puts tests/ on the path, not the root of the checkout where benchmarks/ lies.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import boards
from benchmarks.published import FIGURES, HELD_OUT

from edgekit.bench.predict import estimate
from edgekit.bench.predict.intervals import evidence
from edgekit_devices import load_profile, read_profile


def test_the_table_of_the_page_is_what_the_code_gives() -> None:
    text = boards.PAGE.read_text(encoding="utf-8")
    assert boards.page_with(text, boards.kept_operators()) == text, "python -m benchmarks.boards --write"


def test_the_profile_that_the_page_shows_is_one() -> None:
    blocks = boards.PAGE.read_text(encoding="utf-8").split("```toml\n")[1:]
    assert len(blocks) == 1
    assert read_profile(blocks[0].split("```")[0], "shown").threads == 4


def test_published_figures_of_the_board_that_is_compared_taught_nothing() -> None:
    assert {figure.board for figure in HELD_OUT} == {"raspberry-pi-3b-plus"}
    assert not {figure.board for figure in FIGURES} & {figure.board for figure in HELD_OUT}
    taught = {each.group for each in evidence() if each.basis == "class"}
    assert taught == {figure.board for figure in FIGURES}


def test_published_figures_lie_within_the_intervals_of_estimates_that_never_saw_them() -> None:
    ops, profile = boards.kept_operators(), load_profile("raspberry-pi-3b-plus")
    compared = [f for f in HELD_OUT if f"{f.network} {f.precision}" in ops]
    assert {figure.ms for figure in compared} >= {95.7, 70.5, 135.2, 82.7}
    for figure in compared:
        found = estimate(
            ops[f"{figure.network} {figure.precision}"], "tflite", profile, threads=figure.threads
        )
        assert found.low_ms <= figure.ms <= found.high_ms, figure


def test_published_figures_that_taught_are_kept_as_residuals() -> None:
    taught = [each for each in evidence() if each.basis == "class"]
    assert len(taught) == len(FIGURES)
    assert [each.group for each in taught] == [figure.board for figure in FIGURES]
    assert all(abs(each.log_ratio) < math.log(10) for each in taught)


@pytest.mark.slow
def test_kept_operators_are_those_of_the_files(tmp_path: Path) -> None:
    from benchmarks.zoo_files import NETWORKS, files

    from edgekit.bench.predict import read_ops

    (network,) = (each for each in NETWORKS if each.name == "ds-cnn")
    kept = boards.kept_operators()
    for (format, precision), path in files(network, tmp_path).items():
        if format == "tflite":
            found = [boards._row(op) for op in read_ops(path)]
            assert found == [boards._row(op) for op in kept[f"ds-cnn {precision}"]]
