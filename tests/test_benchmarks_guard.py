"""The regression guard: what counts as slower, what is stored, and a predict that was slowed down on purpose."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.guard.__main__ import main
from benchmarks.guard.verdicts import (
    FASTER,
    GONE,
    NEW,
    SLOWER,
    WITHIN,
    GuardError,
    HotPath,
    change,
    compare,
    known,
    measured,
    render,
    stored,
    with_entry,
)
from benchmarks.machine import Machine, machine
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bench.timing import Ratio

ROOT = Path(__file__).parents[1]
NOTHING: dict[str, Any] = {"schema": 1, "entries": []}
PI: Machine = {"cpu": "Cortex-A72", "isa": ["asimddp"], "cores": 4, "python": "3.11.2", "versions": {}}
# Slows every prediction down threefold, in a process that pytest loads it into.
SLOW_PREDICT = """
import time
from edgekit_runtime import Model

quick = Model.predict

def predict(self, x):
    began = time.perf_counter()
    found = quick(self, x)
    end = began + {factor} * (time.perf_counter() - began)
    while time.perf_counter() < end:
        pass
    return found

Model.predict = predict
"""


@st.composite
def ratios(draw: st.DrawFn) -> Ratio:
    """A ratio within its interval."""
    value = draw(st.floats(0.01, 100))
    return Ratio(value, value * draw(st.floats(0.5, 1)), value * draw(st.floats(1, 2)))


def path(value: float, spread: float = 0.02) -> HotPath:
    return HotPath(Ratio(value, value * (1 - spread), value * (1 + spread)), 1.0)


def verdict(then: HotPath, now: HotPath, margin: float = 0.05) -> str:
    (row,) = compare({"predict": then}, {"predict": now}, margin=margin)
    return row.verdict


def document(name: str, took: list[float], reference: list[float], calls: int = 1) -> dict[str, Any]:
    """As pytest-benchmark writes it, of one benchmark."""
    extra = {"reference_s": reference, "calls": calls}
    return {"benchmarks": [{"name": name, "stats": {"data": took}, "extra_info": extra}]}


# Verdicts


@pytest.mark.parametrize(
    ("now", "spread", "expected"),
    [
        (1.0, 0.02, WITHIN), (1.04, 0.0, WITHIN), (1.3, 0.02, SLOWER), (3.0, 0.02, SLOWER), (1.3, 0.3, WITHIN),
        (0.7, 0.02, FASTER), (0.7, 0.3, WITHIN), (0.96, 0.0, WITHIN),
    ],
)  # fmt: skip
def test_the_interval_decides_and_not_the_point(now: float, spread: float, expected: str) -> None:
    assert verdict(path(1.0, spread), path(now, spread)) == expected


@given(ratios(), st.floats(0, 1))
def test_the_same_figures_are_within_noise(found: Ratio, margin: float) -> None:
    assert verdict(HotPath(found, 1.0), HotPath(found, 1.0), margin) == WITHIN


@given(ratios(), ratios(), st.floats(0.001, 1))
def test_what_is_slower_one_way_is_faster_the_other(first: Ratio, second: Ratio, margin: float) -> None:
    then, now = HotPath(first, 1.0), HotPath(second, 1.0)
    moved = change(first, second)
    assert moved.low <= moved.value * (1 + 1e-9)
    assert moved.value <= moved.high * (1 + 1e-9)
    if verdict(then, now, margin) == SLOWER:
        assert verdict(now, then, 0.999 * margin) == FASTER
        assert first.high < second.low
    else:
        assert moved.low <= 1 + margin


def test_what_was_not_stored_is_new_and_what_was_not_measured_is_told() -> None:
    rows = compare({"swap": path(1)}, {"gates": path(2)}, margin=0.05)
    assert [(row.name, row.verdict, row.change) for row in rows] == [
        ("gates", NEW, None),
        ("swap", GONE, None),
    ]


def test_the_table_names_what_moved() -> None:
    rows = compare({"model_predict": path(1.0)}, {"model_predict": path(1.5), "swap": path(4)}, margin=0.05)
    assert render(rows).splitlines() == [
        "| name          | then           | now              | change          | verdict |",
        "| ------------- | -------------- | ---------------- | --------------- | ------- |",
        "| model_predict | 1 [0.98, 1.02] | 1.5 [1.47, 1.53] | +50% [+44, +56] | SLOWER  |",
        "| swap          | –              | 4 [3.92, 4.08]   | –               | new     |",
    ]


# Figures of pytest-benchmark


def test_rounds_are_held_against_their_own_reference() -> None:
    # The machine was twice as slow in the second half; no ratio shows it.
    found = measured([document("test_swap", [0.6, 0.6, 1.2, 1.2], [0.1, 0.1, 0.2, 0.2], calls=2)])
    assert found["swap"].ratio == Ratio(pytest.approx(3), pytest.approx(3), pytest.approx(3))
    assert found["swap"].ms == pytest.approx(450)


def test_the_interval_reaches_over_all_processes() -> None:
    found = measured([document("test_gates", [value] * 5, [1.0] * 5) for value in (1.0, 1.2, 1.1)])
    assert found["gates"].ratio == Ratio(1.1, 1.0, 1.2)


@pytest.mark.parametrize("reference", [[], [1.0]], ids=["none", "too few"])
def test_a_benchmark_without_its_reference_is_refused(reference: list[float]) -> None:
    with pytest.raises(GuardError, match=r"gates: 2 rounds beside .* fixture `against`"):
        measured([document("test_gates", [1.0, 1.0], reference)])


# What is stored


def test_results_of_other_extensions_are_kept_and_not_compared() -> None:
    tree = with_entry(with_entry(NOTHING, PI, {"swap": path(1)}), machine(), {"swap": path(2)})
    assert stored(tree, PI["isa"]) == {"swap": path(1)}
    assert stored(tree, machine()["isa"]) == {"swap": path(2)}
    assert stored(tree, ["sve"]) is None
    assert known(tree)[0] == "Cortex-A72 (asimddp)"


def test_an_update_replaces_what_was_measured_and_keeps_the_rest() -> None:
    tree = with_entry(NOTHING, PI, {"swap": path(1), "gates": path(1)})
    again = with_entry(tree, PI, {"swap": path(2)})
    assert stored(again, PI["isa"]) == {"swap": path(2), "gates": path(1)}
    assert len(again["entries"]) == 1
    assert json.loads(json.dumps(again)) == again


@pytest.mark.parametrize(
    "change_of",
    [
        lambda tree: tree.update(schema=2),
        lambda tree: tree.pop("entries"),
        lambda tree: tree["entries"][0].pop("paths"),
        lambda tree: tree["entries"][0]["machine"].pop("isa"),
        lambda tree: tree["entries"][0]["paths"]["swap"].update(ratio=[1.0, 2.0]),
        lambda tree: tree["entries"][0]["paths"]["swap"].update(ratio=[1.0, 0.0, 2.0]),
        lambda tree: tree["entries"][0]["paths"]["swap"].update(ms="1"),
    ],
    ids=["schema", "entries", "paths", "isa", "two numbers", "zero", "text"],
)
def test_results_that_break_the_form_are_refused(change_of: Any) -> None:
    tree = copy.deepcopy(with_entry(NOTHING, PI, {"swap": path(1)}))
    change_of(tree)
    with pytest.raises(GuardError, match=r"[Ss]tore anew"):
        stored(tree, PI["isa"])


def test_a_file_that_is_no_json_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "guard.json"
    file.write_text("{")
    assert main(["--results", str(file)]) == 2
    assert "expected JSON that --update wrote" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--processes", "0"], ["--margin", "-1"], ["--margin", "much"]])
def test_wrong_arguments_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(wrong)
    assert "expected" in capsys.readouterr().err


def test_the_stored_results_of_this_repository_can_be_read() -> None:
    tree = json.loads((ROOT / "benchmarks" / "results" / "guard.json").read_text())
    assert known(tree)


# The whole of it


def guard(results: Path, plugins: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Measure `Model.predict` alone; with a plugin `slow_predict` of this folder in pytest."""
    more = {"PYTHONPATH": str(plugins), "PYTEST_ADDOPTS": "-p slow_predict"} if plugins else {}
    # A test process of pytest-xdist must not pass on what it is.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.guard", "--only", "model_predict", "--processes", "1",
         "--results", str(results), *(() if plugins else ("--update",))],
        cwd=ROOT, env={**own, **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_predict_that_was_slowed_down_is_caught_and_named(tmp_path: Path) -> None:
    results = tmp_path / "guard.json"
    results.write_text(json.dumps(with_entry(NOTHING, PI, {"model_predict": path(1)})))
    first = guard(results)
    assert first.returncode == 0, first.stderr
    assert "Nothing is compared: results are stored of Cortex-A72 (asimddp)" in first.stdout
    (tmp_path / "slow_predict.py").write_text(SLOW_PREDICT.format(factor=3))
    slowed = guard(results, tmp_path)
    assert slowed.returncode == 1, slowed.stdout + slowed.stderr
    assert "slower by more than noise and 5%: model_predict" in slowed.stderr
    assert SLOWER in slowed.stdout
