"""An output whose first axis is not the batch, as `[time, 1, classes]` of a reader of lines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgekit.errors import LoweringError
from edgekit.evaluate import choose_metric
from edgekit.inputs import Inputs
from edgekit.intake import load
from edgekit.judge import assess, prove
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit_converters.cleanup import clean
from edgekit_converters.onnx import export_onnx
from edgekit_converters.predict import SavedModel

SAMPLES = 6


class TimeFirst(nn.Module):
    """`[n, 4, time]` to `[time, n, 5]`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.permute(2, 0, 1))


class States(nn.Module):
    """A cell that takes its state, `[layers, n, width]`, from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(4, 6, 2, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.cell(x, state)


def test_many_rows_a_sample_are_proven_and_judged_row_by_row(tmp_path: Path) -> None:
    torch.manual_seed(0)
    candidate = load(TimeFirst().eval(), None, {"example": (torch.randn(1, 4, 7),)})
    program, _ = clean(candidate.program)
    assert not program.dynamic_batch
    observed = observe(program)
    calibrate(observed, [(torch.randn(1, 4, 7),) for _ in range(8)])
    quantized = convert(observed)
    export_onnx(quantized, tmp_path / "m.onnx")
    ends = (program.inputs, program.outputs, quantized.input_grids, quantized.output_grids)
    saved = {"onnx": SavedModel("onnx", tmp_path / "m.onnx", *ends)}
    x = torch.randn(SAMPLES, 4, 7).numpy()

    proof = prove(quantized, saved, [x])["onnx"]
    metric = choose_metric("agreement", labels=False, classes=True)
    rows = Inputs(
        calibration=lambda: iter(()), evaluation=lambda: (((x[i : i + 1],), None) for i in range(SAMPLES)),
        proof=(x,), sha256="", real=True, has_labels=False, labels=(), notes=(), name=str,
    )  # fmt: skip
    _, n, quality = assess(program, saved, rows, metric)

    assert proof.holds, proof
    assert n == SAMPLES
    # Compared with the first row alone, it would be noise.
    assert quality["onnx"].snr_db > 25
    assert np.isfinite(quality["onnx"].snr_db)


def test_an_input_that_does_not_begin_with_samples_is_refused_by_name() -> None:
    example = (torch.randn(1, 3, 4), torch.randn(2, 1, 6))

    with pytest.raises(LoweringError, match=r"input 'state'.*\(2, 1, 6\).*transposes") as refused:
        load(States().eval(), None, {"example": example})

    assert refused.value.exit_code == 4
