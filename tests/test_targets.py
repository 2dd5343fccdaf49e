"""What `--target` decides: formats, layout, weights, size, and the estimate that a latency limit is held against."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from tests.support.sample_report import accepted, latency

from edgekit.bench import LatencyStats
from edgekit.bench.layers import LayerShape
from edgekit.bench.layers.tflite_file import tflite_file
from edgekit.bench.predict import Prediction
from edgekit.judge import Judged, Quality, estimates
from edgekit.recipe import Budget, Recipe, for_targets, load_recipe
from edgekit.report import ArtifactResult, Baseline, summary
from edgekit.report.html import render_html
from edgekit.report.schema import _artifact_tree, verdict
from edgekit_converters.parity import Proof
from edgekit_converters.predict import SavedModel
from edgekit_devices import ProfileError

ESTIMATE = Prediction(80.0, 40.0, 160.0, {"conv": 60.0}, "raspberry-pi-3b-plus", "tflite", 4, "class")
PROOF = Proof("LiteRT", 32, 0.0, 0.0, 1.0)


def options(*targets: str, **more: Any) -> Recipe:
    return load_recipe(None, {"targets": list(targets), **more})


@pytest.mark.parametrize(
    ("targets", "formats", "layout"),
    [
        ((), ("onnx", "tflite", "coreml"), "nchw"),
        (("generic",), ("onnx", "tflite", "coreml"), "nchw"),
        (("raspberry-pi-4",), ("tflite",), "nhwc"),
        (("raspberry-pi-4", "generic"), ("tflite",), "nhwc"),
        (("raspberry-pi-4", "iphone-a17"), ("tflite", "coreml"), "nchw"),
        (("x86-64-vnni",), ("onnx",), "nchw"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else value,
)
def test_formats_that_nobody_named_are_those_that_the_targets_prefer(
    targets: tuple[str, ...], formats: tuple[str, ...], layout: str
) -> None:
    found = options(*targets) if targets else load_recipe()
    assert (found.formats, found.layout) == (formats, layout)


def test_what_the_user_named_stays() -> None:
    found = options("raspberry-pi-4", formats=["onnx"], layout="nchw")
    assert (found.formats, found.layout) == (("onnx",), "nchw")


def test_a_microcontroller_bounds_the_size_by_its_flash_and_gets_integer_ends() -> None:
    found = options("stm32h7")
    assert (found.formats, found.io) == (("tflite",), "int8")
    assert for_targets(found).budget.max_size_mb == pytest.approx(2048 * 1024 / 1e6)
    tighter = options("stm32h7", budget={"max_size_mb": 0.5})
    assert for_targets(tighter).budget.max_size_mb == 0.5


def test_saturating_kernels_narrow_the_weights() -> None:
    assert for_targets(options("x86-64-avx2")).quantize.weight_bits == 7
    assert for_targets(options("x86-64-vnni")).quantize.weight_bits == 8


def test_an_unknown_target_is_told_at_once() -> None:
    with pytest.raises(ProfileError, match="toaster"):
        options("toaster")


def test_a_file_is_estimated_for_every_target_that_says_enough(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    shape = LayerShape("conv2d", 16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8))
    path.write_bytes(tflite_file(shape, 1))
    saved = SavedModel("tflite", path, (), ())
    found, notes = estimates(saved, ("raspberry-pi-4", "generic", "stm32h7", "cortex-a53"))
    assert list(found) == ["raspberry-pi-4", "cortex-a53"]
    assert not notes
    path.write_bytes(b"\0\0\0\0TFL3 and nothing that one could read")
    found, notes = estimates(saved, ("raspberry-pi-4",))
    assert not found
    assert "no estimate for raspberry-pi-4" in notes[0]
    assert estimates(replace(saved, format="coreml"), ("raspberry-pi-4",)) == ({}, ())


def judged(here_ms: float, *predicted: Prediction) -> Judged:
    missing, stats = cast("Any", None), LatencyStats(here_ms, here_ms, here_ms, 9)
    return Judged(
        missing,
        missing,
        PROOF,
        Quality(0.9, 0.0, 1.0, 30.0, 99),
        stats,
        LatencyStats(2 * here_ms, 2 * here_ms, 2 * here_ms, 9),
        (0.9, 99),
        predicted={each.target: each for each in predicted},
    )


def test_with_a_target_a_limit_is_held_against_its_estimate() -> None:
    budget = Budget(max_latency_ms=50)
    assert not judged(3.0).slow(budget)
    assert judged(3.0, ESTIMATE).slow(budget)
    assert not judged(300.0, ESTIMATE).slow(Budget(max_latency_ms=100))
    quicker = replace(ESTIMATE, ms=10.0, target="raspberry-pi-5")
    assert judged(3.0, quicker, ESTIMATE).judged_ms == 80.0


def artifact(*predicted: Prediction) -> ArtifactResult:
    return ArtifactResult(
        "tflite",
        "model.tflite",
        1000,
        proof=PROOF,
        latency=latency(3.0),
        float_latency=latency(6.0),
        predicted={each.target: each for each in predicted},
    )


def reasons(limit: float, *predicted: Prediction) -> tuple[str, ...]:
    baseline = Baseline("top1", 0.9, 100, 10, 10, 40)
    return verdict(
        baseline=baseline, artifacts=[artifact(*predicted)], layers=(), budget=Budget(max_latency_ms=limit)
    )


def test_a_missed_limit_says_that_it_was_estimated_and_for_what() -> None:
    (reason,) = reasons(50, ESTIMATE)
    assert "by estimate 80.0 ms on raspberry-pi-3b-plus (40.0 ms to 160 ms), allowed is 50 ms" in reason
    assert reasons(50) == ()
    assert reasons(100, ESTIMATE) == ()
    (reason,) = reasons(2)
    assert "median latency" in reason


def test_the_report_marks_estimates_wherever_it_shows_them() -> None:
    tree = _artifact_tree(artifact(ESTIMATE))["predicted"]
    assert tree == {
        "raspberry-pi-3b-plus": {
            "estimated": True,
            "ms": 80.0,
            "low": 40.0,
            "high": 160.0,
            "threads": 4,
            "basis": "class",
        }
    }
    report = accepted()
    report["artifacts"]["tflite"]["predicted"] = tree
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary(report))
    assert "about 80.0 ms on raspberry-pi-3b-plus (40.0 ms to 160 ms), an estimate" in console.export_text()
    assert "estimate for raspberry-pi-3b-plus" in render_html(report)
