"""Users name inputs and outputs as they like, also as torch names its own values."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from edgekit.load import load_candidate
from edgekit_converters.onnx import export_onnx


class Borrowed(nn.Module):
    """Input `cat`, output `mean`, and a layer whose parameter has the name of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0))

    def forward(self, cat: Tensor, mul: Tensor) -> dict[str, Tensor]:
        wide = torch.cat([cat, mul], 1) * self.weight
        return {"mean": wide + 1, "add": wide.mean(1)}


def test_names_of_torch_values_may_be_those_of_inputs_and_outputs(tmp_path: Path) -> None:
    example = (torch.randn(1, 2), torch.randn(1, 4))
    program = load_candidate(Borrowed(), example=example).program

    export_onnx(program, tmp_path / "m.onnx")

    session = ort.InferenceSession(str(tmp_path / "m.onnx"))
    assert [i.name for i in session.get_inputs()] == ["cat", "mul"]
    feed = {"cat": example[0].numpy(), "mul": example[1].numpy()}
    found = dict(zip(("mean", "add"), session.run(["mean", "add"], feed), strict=True))
    for name, wanted in Borrowed()(*example).items():
        np.testing.assert_allclose(found[name], wanted.detach().numpy(), rtol=1e-5)
