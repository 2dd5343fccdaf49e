"""A file that is slower than float is lowered in other ways, and the report says what was tried."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import edgekit
from edgekit import attempt
from edgekit.bench import LatencyStats, kernel_ms, slower_kernels
from edgekit.bundle import Bundle
from edgekit.stages.quantize.plan import elementwise, make_plan
from edgekit.stages.quantize.rungs import ISLANDS, STATIC, WEIGHTS
from quantized_programs import program
from support.tiny_files import write_onnx
from support.tiny_runs import images, network

FLOAT_MS = 1.0


class Gated(nn.Module):
    """A product of two layers, which ONNX Runtime computes faster in float."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.last = (nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.left(x) * torch.sigmoid(self.right(x)))


def compress(
    module: nn.Module, out: Path, monkeypatch: pytest.MonkeyPatch, medians: Mapping[str, float]
) -> tuple[Bundle, list[str]]:
    """Compress to ONNX on a machine where each lowering takes as long as `medians` says; also what was timed."""
    timed: list[str] = []
    lowered = iter(medians.items())

    def measured(files: Mapping[str, Path], *, max_seconds: float) -> dict[str, LatencyStats]:
        assert max_seconds > 0
        variant, median = next(lowered)
        timed.append(variant)
        return {
            name: LatencyStats(*(3 * [FLOAT_MS if name.endswith("float") else median]), n=50)
            for name in files
        }

    monkeypatch.setattr(attempt, "time_files", measured)
    made = edgekit.compress(module, data={"x": images()}, out=out, preset="fast", formats=["onnx"])
    return made, timed


@pytest.mark.slow
def test_a_fast_file_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, timed = compress(Gated(), tmp_path / "out", monkeypatch, {STATIC: 1.04})

    assert timed == [STATIC]
    assert made.report["artifacts"]["onnx"]["lowering"] == STATIC
    assert made.report["artifacts"]["onnx"]["notes"] == []


@pytest.mark.slow
def test_arithmetic_in_float_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, timed = compress(Gated(), tmp_path / "out", monkeypatch, {STATIC: 1.3, ISLANDS: 0.8})

    onnx = made.report["artifacts"]["onnx"]
    assert timed == [STATIC, ISLANDS]
    assert onnx["lowering"] == ISLANDS
    assert onnx["proof"]["holds"]
    assert {"Mul", "Sigmoid"} <= set(onnx["float_ops"])
    assert onnx["int8_ops"] >= 3
    assert any(note.startswith(f"{STATIC} took 1.30 times as long as float") for note in onnx["notes"])
    assert (tmp_path / "out" / "golden-islands.npz").exists()
    assert not (tmp_path / "out" / "golden.npz").exists()
    assert Bundle.open(tmp_path / "out").manifest.artifacts[0].golden == "golden-islands.npz"


@pytest.mark.slow
def test_weights_alone_come_last_and_only_if_they_are_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    medians = {STATIC: 1.3, ISLANDS: 1.2, WEIGHTS: 1.0}
    made, timed = compress(Gated(), tmp_path / "out", monkeypatch, medians)
    assert timed == [STATIC, ISLANDS, WEIGHTS]
    assert made.report["artifacts"]["onnx"]["lowering"] == WEIGHTS

    medians = {STATIC: 1.2, ISLANDS: 1.3, WEIGHTS: 1.4}
    made, _ = compress(Gated(), tmp_path / "slow", monkeypatch, medians)
    onnx = made.report["artifacts"]["onnx"]
    assert onnx["lowering"] == STATIC
    assert made.report["accepted"] is False
    assert [note.split(" took ")[0] for note in onnx["notes"]] == [ISLANDS, WEIGHTS, STATIC]


@pytest.mark.slow
def test_a_network_without_arithmetic_goes_straight_to_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, timed = compress(network(), tmp_path / "out", monkeypatch, {STATIC: 1.3, WEIGHTS: 1.0})

    assert timed == [STATIC, WEIGHTS]


def test_elementwise_ops_are_products_activations_and_sums_with_a_number_only() -> None:
    layers = (nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))

    def block(x: torch.Tensor, a: nn.Module, b: nn.Module) -> torch.Tensor:
        y = a(x)
        z = y + x
        return b(nn.functional.silu(z) * y) + 1.0

    graph = program(block, *layers, shape=(3, 8, 8)).graph
    found = elementwise(graph, make_plan(graph))

    by_name = {n.name: n for n in graph.graph.nodes}
    assert found
    assert all(
        by_name[name].target is not torch.ops.aten.add.Tensor or len(by_name[name].all_input_nodes) == 1
        for name in found
    )
    assert torch.ops.aten.mul.Tensor in {by_name[name].target for name in found}


def test_kernels_of_a_file_are_told_with_their_times(tmp_path: Path) -> None:
    times = kernel_ms(write_onnx(tmp_path / "int8.onnx", quantized=True), rounds=5)

    assert {"QLinearConv", "QuantizeLinear"} <= set(times)
    assert all(ms > 0 for ms in times.values())


def test_a_kernel_is_named_when_it_costs_more_than_in_float() -> None:
    integer = {"QLinearMul": 0.3, "QLinearConv": 1.0, "QuantizeLinear": 0.1, "Reshape": 0.001, "QGemm": 0.2}
    floating = {"Mul": 0.07, "Conv": 1.5, "Reshape": 0.0005, "Gemm": 0.2}

    assert slower_kernels(integer, floating) == [
        "QLinearMul 0.3 ms (float 0.07)",
        "QuantizeLinear 0.1 ms (float 0)",
    ]
    assert slower_kernels({}, floating) == []
