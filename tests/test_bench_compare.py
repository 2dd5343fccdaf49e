"""Verdicts that noise does not change, and noise that is said with its figures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bench import Ratio
from edgekit.bench.compare import (
    FASTER,
    LEAST_DIFFERENCE,
    SAME,
    SLOWER,
    comparisons,
    drift,
    noise_warnings,
    slowing,
    spread,
    verdict,
)
from edgekit.bench.results import EMULATED, Result
from edgekit.errors import UsageError
from support.bench_results import MACHINE, QUIET, full, result, rounds, run


def test_a_result_comes_back_from_json_as_it_was() -> None:
    assert Result.from_json(json.dumps(full().to_dict()), "x") == full()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("runs", 0, "threads"), "1"),
        (("runs", 0, "threads"), True),
        (("runs", 0, "latency_ms", "p50"), None),
        (("runs", 0, "rounds_ms"), [1.0, "2"]),
        (("runs", 0, "speed"), 1),
        (("interrupted",), 1),
        (("machine", "runtimes"), {"numpy": 2}),
        (("machine", "isa"), "avx2"),
        (("kind",), "guessed"),
        (("schema",), 2),
        (("noise",), []),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_is_no_result_is_refused_and_the_key_is_named(
    path: tuple[str | int, ...], value: object
) -> None:
    tree = full().to_dict()
    place = json.loads(json.dumps(tree))
    whole = place
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(UsageError, match=str([step for step in path if isinstance(step, str)][-1])):
        Result.from_json(json.dumps(whole), "pi@board")


def test_a_missing_key_and_broken_json_are_refused() -> None:
    tree = full().to_dict()
    del tree["runs"]
    for text in (json.dumps(tree), "{", "", "NaN"):
        with pytest.raises(UsageError, match="pi@board"):
            Result.from_json(text, "pi@board")


@given(st.floats(0.1, 10), st.floats(0, 0.2), st.floats(0, 0.2))
def test_a_verdict_takes_the_whole_interval_beyond_what_counts(
    value: float, below: float, above: float
) -> None:
    found = verdict(Ratio(value, value * (1 - below), value * (1 + above)))
    if found == FASTER:
        assert value * (1 + above) < 1 - LEAST_DIFFERENCE
    elif found == SLOWER:
        assert value * (1 - below) > 1 + LEAST_DIFFERENCE


def test_files_are_held_against_the_one_of_the_same_format_threads_and_batch() -> None:
    runs = [
        run("old", "onnx", 2.0), run("old", "tflite", 4.0), run("new", "onnx", 1.0), run("new", "tflite", 4.0),
        run("new", "tflite", 9.0, threads=2),
    ]  # fmt: skip
    found = {each.name: (each.against, each.verdict) for each in comparisons(result(*runs), "old")}
    assert found == {
        "old tflite": ("old onnx", SLOWER),
        "new onnx": ("old onnx", FASTER),
        "new tflite": ("old tflite", SAME),
    }
    (new,) = (each for each in comparisons(result(*runs), "old") if each.name == "new onnx")
    assert str(new).startswith("new onnx: 2.00× the speed of old onnx (2.00× to 2.00×): faster")


def test_a_file_alone_and_too_few_rounds_are_not_compared() -> None:
    assert comparisons(result(run()), "net") == ()
    few = [run("a", rounds_ms=rounds(1, 4)), run("b", rounds_ms=rounds(2, 4))]
    assert comparisons(result(*few), "a") == ()
    assert comparisons(result(run("a", rounds_ms=()), run("b", rounds_ms=())), "a") == ()


@given(st.integers(0, 20), st.sampled_from([0.7, 1.0, 1.4]))
@settings(max_examples=15)
def test_load_that_meets_both_changes_no_verdict(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    quiet = np.abs(rng.normal(1, 0.01, 100))
    load = 1 + rng.exponential(0.5, 100)  # a busy machine: heavy, and shared by both files of a round
    own = np.abs(rng.normal(1, 0.01, (2, 100)))
    at_rest = result(run("a", rounds_ms=tuple(quiet)), run("b", rounds_ms=tuple(factor * quiet * own[0])))
    busy = result(run("a", rounds_ms=tuple(load * own[0])), run("b", rounds_ms=tuple(factor * load * own[1])))
    verdicts = {comparisons(each, "a")[0].verdict for each in (at_rest, busy)}
    assert verdicts == {FASTER if factor < 1 else SLOWER if factor > 1 else SAME}
    assert noise_warnings(busy)


def test_a_quiet_machine_is_not_complained_about() -> None:
    assert noise_warnings(full()) == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"others_share": 0.52}, "52%"),
        ({"stolen_share": 0.031}, "3.1%"),
        ({"preempted_per_s": 130.0}, "130 times"),
        ({"clock_mhz": (600.0, 1500.0)}, "600 and 1500 MHz"),
        ({"temperature_c": (60.0, 84.0)}, "84 °C"),
    ],
    ids=["others", "stolen", "preempted", "clock", "heat"],
)
def test_what_disturbs_is_said_with_its_figure(change: dict[str, float], said: str) -> None:
    noise = replace(QUIET, **change)  # type: ignore[arg-type]
    (warning,) = noise_warnings(result(noise=noise))
    assert said in warning


def test_rounds_that_spread_or_drift_are_said_with_the_file() -> None:
    wild = run("wild", rounds_ms=rounds(1, 60, noise=0.3))
    assert spread(wild) > 0.1
    assert any("wild onnx" in each for each in noise_warnings(result(run(), wild)))
    slow = run("slow", rounds_ms=tuple(np.linspace(1, 1.15, 60)))
    assert drift(slow) == pytest.approx(0.1, abs=0.03)
    assert any("slow onnx was 10% slower" in each for each in noise_warnings(result(run(), slow)))


def test_a_governor_that_lags_is_said_and_emulation_is_not_judged() -> None:
    lagging = replace(MACHINE, governor="ondemand")
    assert "cpupower" in noise_warnings(result(machine=lagging))[0]
    assert noise_warnings(result(machine=lagging, kind=EMULATED)) == ()


def test_how_much_a_board_slows_down_is_seen_from_its_ends() -> None:
    assert slowing((1.0,) * 10 + (1.5,) * 10) == pytest.approx(0.5)
    assert slowing((1.0,)) == 0
