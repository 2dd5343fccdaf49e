"""Realistic reports of a network like EfficientNet-Lite0, without running anything."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from edgekit.bench import LatencyStats
from edgekit.errors import LoweringError
from edgekit.recipe import Budget
from edgekit.report import (
    ArtifactResult,
    Baseline,
    LayerResult,
    Provenance,
    StageResult,
    build_report,
)
from edgekit_converters.parity import Proof

NOTES = (
    "Calibrated on inputs distilled from the model; nothing was measured on real data.",
    "7-bit weights for raspberry-pi-4.",
)


def latency(p50_ms: float) -> LatencyStats:
    return LatencyStats(p50_ms, p50_ms * 1.08, p50_ms * 1.31, 60)


def baseline() -> Baseline:
    return Baseline("top1", 0.8793, 875, 4_652_008, 385_900_000, 18_608_032, latency(6.02))


def layers(count: int = 49) -> tuple[LayerResult, ...]:
    """A stem, blocks and a head; the figures follow smooth curves with two weak spots."""
    found = [LayerResult("stem.conv", "conv2d", 864, 10_838_016, 31.4, 38.2)]
    for index in range(max(count - 3, 0)):
        block, part = divmod(index, 3)
        kind = ("expand", "depthwise", "project")[part]
        width = 16 * (1 + block // 2)
        weight = width * 9 * 6 if kind == "depthwise" else width * width * 6
        snr = 29 - 0.12 * index + 3.5 * math.sin(index)
        damage = 47 + 4 * math.cos(index * 1.7) - (19 if index in (4, 16) else 0)
        found.append(
            LayerResult(
                f"blocks.{block}.{kind}.conv", "conv2d", weight, weight * 200 // (1 + block), snr, damage
            )
        )
    found.append(
        LayerResult(
            "head.norm", "layer_norm", 5_120, 2_560, kept_float=True, reason="no runtime has an int8 kernel"
        )
    )
    found.append(LayerResult("head.linear", "linear", 1_281_000, 1_280_000, 24.9, 41.0))
    return tuple(found)


def artifacts() -> tuple[ArtifactResult, ...]:
    common: dict[str, Any] = {"n": 875, "metric": 0.8781, "drop": 0.0012, "agreement": 0.9726, "snr_db": 24.6}
    return (
        ArtifactResult(
            "onnx",
            "model.onnx",
            4_912_340,
            proof=Proof("ONNX Runtime 1.31.1", 64, 1, 1, 0.9981),
            latency=latency(1.93),
            float_latency=latency(4.41),
            float_size_bytes=18_640_000,
            int8_ops=63,
            float_ops={"LayerNormalization": 1},
            **common,
        ),
        ArtifactResult(
            "tflite",
            "model.tflite",
            4_868_112,
            proof=Proof("LiteRT 2.3.0", 64, 1, 0, 0.9993),
            latency=latency(1.88),
            float_latency=latency(6.37),
            float_size_bytes=18_600_000,
            int8_ops=64,
            float_ops={"MEAN": 2, "RSQRT": 1},
            delegated_partitions=1,
            **common,
        ),
        ArtifactResult(
            "coreml",
            "model.mlpackage",
            4_990_020,
            proof=Proof("Core ML reference evaluator", 64, 0, 0, 1.0),
            notes=("Timed on macOS only.",),
            **common,
        ),
    )


def provenance() -> Provenance:
    return Provenance(
        seed=0,
        versions={"edgekit": "0.1.0", "torch": "2.13.0", "onnxruntime": "1.31.1", "litert-torch": "0.10.0"},
        recipe_sha256="1f" * 32,
        model_sha256="2e" * 32,
        calibration_sha256="3d" * 32,
        command="edgekit compress model.pt --data photos/ -o out --max-drop 0.01",
    )


def stages() -> tuple[StageResult, ...]:
    before: dict[str, float | None] = {"params": 4_694_024, "macs": 389_200_000, "value": 0.8793}
    after: dict[str, float | None] = {"params": 4_652_008, "macs": 385_900_000, "value": 0.8793}
    return (
        StageResult("clean up", 1.8, before, after, ("49 batch norms folded, 17 paddings folded.",)),
        StageResult("calibrate", 9.2, after, after, ("128 inputs; percentile won over minmax and mse.",)),
        StageResult("quantize", 14.7, after, {**after, "value": 0.8781}),
        StageResult("prove and time", 21.3),
    )


def accepted(**changes: Any) -> dict[str, Any]:
    """The report of a run where everything holds; `changes` replace arguments of `build_report`."""
    arguments: dict[str, Any] = {
        "name": "efficientnet-lite0",
        "version": "1.0.0",
        "baseline": baseline(),
        "artifacts": artifacts(),
        "layers": layers(),
        "stages": stages(),
        "budget": Budget(max_drop=0.01, max_size_mb=6.0),
        "provenance": provenance(),
        "notes": NOTES[:1],
    }
    return build_report(**{**arguments, **changes})


def refused() -> dict[str, Any]:
    """The report of a run that misses a proof, the accuracy and the latency, and one format."""
    onnx, tflite, _ = artifacts()
    return accepted(
        artifacts=(
            replace(onnx, drop=0.0231, metric=0.8562, agreement=0.931),
            replace(
                tflite,
                proof=Proof("LiteRT 2.3.0", 64, 9, 4, 0.61),
                latency=latency(13.2),
                float_ops={"HARD_SWISH": 10},
                delegated_partitions=10,
                outside_ops={"HARD_SWISH": 10},
            ),
        ),
        failures=(
            LoweringError(
                format="coreml",
                op="aten.fft_rfft",
                where="net.py:41",
                why="Core ML has no Fourier transform",
                way_out="Compute the spectrum before the model, or leave coreml out of --format.",
            ),
        ),
        notes=NOTES,
    )
