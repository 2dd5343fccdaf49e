"""On the workbench: the stages of `compress` on a small network, each by itself and in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.guard.conftest import Against
from benchmarks.guard.references import objects, products
from edgekit.judge import prove
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit_converters.cleanup import clean
from edgekit_converters.onnx import export_onnx
from edgekit_converters.predict import SavedModel
from edgekit_converters.program import Program, QuantizedProgram, TensorInfo

SHAPE = (3, 24, 24)
Batches = list[tuple[torch.Tensor, ...]]


class Network(nn.Module):  # type: ignore[misc]
    """Convolutions, a depthwise one among them, a mean and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(32, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.layers(x),)


@pytest.fixture(scope="module")
def program() -> Program:
    """The network exported with a free batch, and cleaned."""
    torch.set_num_threads(1)
    network = Network().eval()
    free = ({0: torch.export.Dim("batch", max=64)},)
    exported = torch.export.export(network, (torch.randn(2, *SHAPE),), dynamic_shapes=free)
    ends = [(TensorInfo(name, (1, *shape), "float32"),) for name, shape in (("x", SHAPE), ("y", (10,)))]
    graph = exported.module(check_guards=False)
    return clean(Program(graph, ends[0], ends[1], (torch.randn(1, *SHAPE),), dynamic_batch=True))[0]


@pytest.fixture(scope="module")
def batches() -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, *SHAPE, generator=generator),) for _ in range(2)]


@pytest.fixture(scope="module")
def quantized(program: Program, batches: Batches) -> QuantizedProgram:
    observed = observe(program)
    calibrate(observed, batches)
    return convert(observed)


def test_compress_plan(against: Against, program: Program) -> None:
    against(lambda: observe(program), objects(), rounds=60, reference_calls=10)


def test_compress_calibrate(against: Against, program: Program, batches: Batches) -> None:
    observed = observe(program)
    against(lambda: calibrate(observed, batches), products(), rounds=120, reference_calls=4)


def test_compress_lower(against: Against, quantized: QuantizedProgram, tmp_path: Path) -> None:
    against(lambda: export_onnx(quantized, tmp_path / "model.onnx"), objects(), rounds=7, reference_calls=400)


def test_compress_verify(against: Against, quantized: QuantizedProgram, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    export_onnx(quantized, file)
    source = quantized.program
    saved = SavedModel(
        "onnx", file, source.inputs, source.outputs, quantized.input_grids, quantized.output_grids
    )
    inputs = [np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)]
    against(lambda: prove(quantized, {"onnx": saved}, inputs), products(), rounds=100, reference_calls=4)
