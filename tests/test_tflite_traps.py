"""Networks that litert-torch writes wrongly, or not at all, when it is left alone with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.judge import prove
from edgekit.load import load_candidate
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit_converters.cleanup import clean
from edgekit_converters.predict import SavedModel
from edgekit_converters.program import QuantizedProgram
from edgekit_converters.tflite import export_tflite
from edgekit_converters.tflite.barrier import stop_spreading

tflite = pytest.importorskip("ai_edge_litert.interpreter")


class GlobalContext(nn.Module):
    """The mean of each channel is put beside every pixel, by `expand` or `repeat`; no two extents are equal."""

    def __init__(self, *, repeat: bool) -> None:
        super().__init__()
        self.enter, self.leave, self.repeat = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(24, 4, 1), repeat

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).relu()
        mean = y.mean((2, 3), keepdim=True)
        wide = mean.repeat(1, 1, *y.shape[2:]) if self.repeat else mean.expand(-1, -1, *y.shape[2:])
        return self.leave(torch.cat([y, wide], 1))


class Decoder(nn.Module):
    """Stacked GRU that gives its last answer and the states of all layers, whose parts overlap."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 12, 3, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, states = self.cell(x)
        return self.head(y[:, -1]), states


class Reader(nn.Module):
    """Convolutions with a padded maximum, both directions of an LSTM over time, log-softmax: Shi et al. 2015."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bridge = nn.Conv2d(1, 8, 3, padding=1), nn.LayerNorm(9)
        self.cell = nn.LSTM(16, 8, bidirectional=True)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.conv(x), 2, (2, 1), (0, 1))
        y, _ = self.cell(self.bridge(y).flatten(1, 2).permute(2, 0, 1))
        return self.head(y).log_softmax(-1)


class Bins(nn.Module):
    """A softmax over bins between layers, and a power: boxes as YOLOv8 and YOLOv5 decode them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mean = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(8, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        left = self.mean(self.conv(x).view(-1, 2, 8, 64).transpose(1, 2).softmax(1))
        return (left.sigmoid() * 2) ** 2


class Pairs(nn.Module):
    """Products of all pairs of features between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        return self.leave(torch.bmm(y, y.transpose(1, 2)))


NETWORKS = {
    "expand": (GlobalContext(repeat=False), (3, 16, 20)),
    "repeat": (GlobalContext(repeat=True), (3, 16, 20)),
    "gru-states": (Decoder(), (6, 4)),
    "lstm-log-softmax": (Reader(), (1, 4, 8)),
    "bins-and-power": (Bins(), (3, 16, 16)),
    "output-padding": (nn.ConvTranspose2d(3, 4, 5, 3, 2, output_padding=1), (3, 6, 7)),
    "maximum-of-parts": (nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveMaxPool2d(2)), (3, 8, 8)),
}


def quantized(module: nn.Module, shape: tuple[int, ...]) -> QuantizedProgram:
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        tensor.data.uniform_(-0.5, 0.5, generator=generator)
    example = (torch.randn(1, *shape, generator=generator),)
    program, _ = clean(load_candidate(module.eval(), example=example).program)
    observed = observe(program)
    calibrate(observed, [(torch.randn(1, *shape, generator=generator),) for _ in range(16)])
    return convert(observed)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_the_reference(name: str, tmp_path: Path) -> None:
    program = quantized(*NETWORKS[name])
    path = tmp_path / "m.tflite"
    export_tflite(program, path)
    ends = (program.program.inputs, program.program.outputs, program.input_grids, program.output_grids)

    inputs = torch.randn(8, *NETWORKS[name][1], generator=torch.Generator().manual_seed(7)).numpy()
    proof = prove(program, {"tflite": SavedModel("tflite", path, *ends)}, [inputs])["tflite"]

    assert proof.holds, proof
    assert proof.max_allowed <= 4, proof


def test_a_product_of_activations_is_float_in_the_file_as_the_plan_says(tmp_path: Path) -> None:
    program = quantized(Pairs(), (4, 6))
    export_tflite(program, tmp_path / "m.tflite")

    interpreter = tflite.Interpreter(str(tmp_path / "m.tflite"))
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    layers = [
        o for o in interpreter._get_ops_details() if o["op_name"] in ("FULLY_CONNECTED", "BATCH_MATMUL")
    ]

    assert "bmm" in program.kept_float
    assert [details[o["inputs"][0]]["dtype"] for o in layers] == [np.int8, np.float32, np.int8]


def test_a_barrier_changes_no_value() -> None:
    program = quantized(*NETWORKS["gru-states"]).program
    x = torch.randn(1, 6, 4)
    before = program.graph(x)

    assert stop_spreading(program.graph) == 1

    assert all(torch.equal(a, b) for a, b in zip(before, program.graph(x), strict=True))
