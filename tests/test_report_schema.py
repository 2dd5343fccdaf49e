"""`report.json`: its stable keys, and a verdict that names what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edgekit.recipe import Budget
from edgekit.report import ArtifactResult, summary, verdict
from edgekit_converters.parity import Proof
from support import sample_report


def judge(*artifacts: ArtifactResult, budget: Budget | None = None, **changes: Any) -> tuple[str, ...]:
    arguments: dict[str, Any] = {"baseline": sample_report.baseline(), "layers": sample_report.layers()}
    return verdict(artifacts=artifacts, budget=budget or Budget(max_drop=0.01), **{**arguments, **changes})


def onnx(**changes: Any) -> ArtifactResult:
    return replace(sample_report.artifacts()[0], **changes)


def test_the_documented_keys_are_there() -> None:
    report = sample_report.accepted()
    assert {"accepted", "reasons", "baseline", "artifacts", "stages", "layers", "provenance", "notes"} <= set(
        report
    )
    assert set(report["baseline"]) == {"metric", "value", "n", "params", "macs", "size_bytes", "latency_ms"}
    assert {"p50", "p90", "p99"} <= set(report["baseline"]["latency_ms"])
    for artifact in report["artifacts"].values():
        assert {
            *("file", "size_bytes", "metric", "drop", "agreement", "snr_db", "proof", "latency_ms"),
            *("float_latency_ms", "speedup", "int8_ops", "float_ops", "delegated_partitions"),
        } <= set(artifact)
        assert {"reference", "max_steps", "p999_steps", "equal"} <= set(artifact["proof"])
    for layer in report["layers"]:
        assert {"name", "op", "snr_db", "damage_db", "weight_bytes", "macs", "kept_float"} <= set(layer)
    for stage in report["stages"]:
        assert set(stage) == {"name", "seconds", "before", "after", "notes"}
    assert {"seed", "versions", "recipe_sha256", "model_sha256", "calibration_sha256", "command"} <= set(
        report["provenance"]
    )


def test_a_run_where_everything_holds_is_accepted() -> None:
    assert sample_report.accepted()["accepted"] is True
    assert sample_report.accepted()["reasons"] == []


def test_a_refused_run_says_why_for_every_miss() -> None:
    report = sample_report.refused()
    assert report["accepted"] is False
    assert [reason.split(":")[0] for reason in report["reasons"]] == ["coreml", "onnx", "tflite", "tflite"]


def test_a_drop_names_the_layers_that_cost_most() -> None:
    (reason,) = judge(onnx(drop=0.02))
    assert "top1 fell by 2.00 points, allowed is 1.00 points" in reason
    assert reason.index("blocks.5.depthwise.conv") < reason.index("blocks.1.depthwise.conv")
    assert "head.norm" not in reason


def test_a_drop_just_within_the_budget_is_accepted() -> None:
    assert judge(onnx(drop=0.01)) == ()
    assert judge(onnx(drop=-0.5)) == ()
    assert judge(onnx(drop=None)) == ()


@pytest.mark.parametrize("steps", [(3, 0), (0, 1.5), (float("nan"), 0), (float("inf"), 0)])
def test_a_proof_that_misses_a_bound_is_refused(steps: tuple[float, float]) -> None:
    (reason,) = judge(onnx(proof=Proof("LiteRT", 64, *steps, 0.9)))
    assert "LiteRT differs from the quantized reference" in reason


def test_a_file_that_nothing_could_read_is_refused() -> None:
    (reason,) = judge(onnx(proof=None))
    assert "not proven" in reason


def test_slower_than_float_is_refused_with_the_ops_and_partitions() -> None:
    slow = onnx(
        latency=sample_report.latency(9),
        float_ops={"HARD_SWISH": 10},
        delegated_partitions=11,
        outside_ops={"ELU": 2},
    )
    (reason,) = judge(slow)
    assert "2.04 times the latency" in reason
    assert "10× HARD_SWISH" in reason
    assert "11 delegated partitions" in reason
    assert "outside the delegate: 2× ELU" in reason
    assert "head.norm" in reason
    assert judge(slow, budget=Budget(allow_slower=True)) == ()


def test_within_the_scatter_of_timing_nothing_is_called_slower() -> None:
    assert judge(onnx(latency=sample_report.latency(4.41 * 1.049))) == ()
    assert judge(onnx(latency=sample_report.latency(4.41 * 1.051))) != ()
    assert judge(onnx(latency=None)) == ()


def test_size_and_latency_budgets_are_checked() -> None:
    (latency, *_), (size, *_) = (
        judge(onnx(), budget=Budget(max_latency_ms=1.0)),
        judge(onnx(), budget=Budget(max_size_mb=4.9)),
    )
    assert "median latency 1.93 ms, allowed is 1 ms" in latency
    assert "4.91 MB, allowed is 4.9 MB" in size


def test_no_artifact_at_all_is_refused() -> None:
    assert judge() == ("no artifact was written",)


def test_the_report_is_plain_json_whatever_was_measured() -> None:
    odd = onnx(
        snr_db=float("inf"),
        metric=np.float32(0.5),
        size_bytes=np.int64(5_000_000),
        proof=Proof("x", 1, float("nan"), 0, 1.0),
    )
    report = sample_report.accepted(artifacts=(odd,))
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text) == report
    assert report["artifacts"]["onnx"]["snr_db"] is None
    assert report["artifacts"]["onnx"]["proof"]["max_steps"] is None
    assert report["accepted"] is False


def shown(report: dict[str, Any], width: int = 140) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(summary(report))
    return captured.get()


def test_the_summary_has_a_row_per_format_and_the_verdict() -> None:
    text = shown(sample_report.accepted())
    assert text.startswith("✓ accepted  efficientnet-lite0 1.0.0")
    for word in (
        "ONNX",
        "TFLite",
        "Core ML",
        "4.91 MB",
        "points",
        "−0.12",
        "2.28×",
        "max 1 of 2",
        "875 inputs",
    ):
        assert word in text


def test_the_summary_fits_a_plain_terminal() -> None:
    report = sample_report.accepted()
    report["artifacts"]["coreml"]["n"] = 128
    report["notes"] = []  # sentences may wrap
    wide, narrow = shown(report, 200), shown(report, 80)
    assert [line.rstrip() for line in narrow.splitlines()] == [line.rstrip() for line in wide.splitlines()]
    assert "87.81%*" in narrow
    assert "* Core ML: on the first 128 of them" in narrow


def test_agreement_has_one_column_where_it_is_the_metric() -> None:
    report = sample_report.accepted()
    assert "agrees" in shown(report)
    report["baseline"]["metric"] = "agreement"
    assert "agrees" not in shown(report)


def test_the_summary_of_a_refusal_shows_reasons_as_they_are() -> None:
    report = sample_report.refused()
    report["reasons"].append("onnx: the layer [bold]features[0][/bold] costs most")
    text = " ".join(shown(report).split())
    assert "✗ refused" in text
    for reason in report["reasons"]:
        assert reason in text
