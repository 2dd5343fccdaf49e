"""The quantized reference: what the integer kernels compute, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

import zoo
from edgekit.load import load_candidate
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit_converters.cleanup import clean
from edgekit_converters.coreml import export_coreml
from edgekit_converters.onnx import export_onnx
from edgekit_converters.predict import SavedModel, open_saved
from edgekit_converters.program import QuantizedProgram
from edgekit_converters.reference import Reference

FAMILIES = ("resnet", "mobilenet_v2", "mlp")


def quantized(name: str, *, ties: bool = True) -> QuantizedProgram:
    model = zoo.BY_NAME[name]
    inputs = zoo.draw(model, 16, seed=3)
    program, _ = clean(load_candidate(zoo.build(model), example=tuple(x[:1] for x in inputs)).program)
    observed = observe(program)
    calibrate(observed, [inputs])
    return convert(observed, ties=[inputs] if ties else ())


def fresh(name: str, n: int = 8) -> tuple[torch.Tensor, ...]:
    return zoo.draw(zoo.BY_NAME[name], n, seed=11)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_stays_within_two_steps_of_the_graph_in_float(name: str) -> None:
    program = quantized(name)
    with torch.no_grad():
        literal = program.program.graph(*fresh(name))

    for ours, theirs, grid in zip(
        Reference(program)(*fresh(name)), literal, program.output_grids, strict=True
    ):
        assert grid is not None
        assert (ours - theirs).abs().max() <= 2.001 * grid.scale


@pytest.mark.parametrize("name", FAMILIES)
def test_the_batch_does_not_matter(name: str) -> None:
    reference = Reference(quantized(name))
    together = reference(*fresh(name))[0]
    apart = torch.cat([reference(*(x[i : i + 1] for x in fresh(name)))[0] for i in range(8)])

    assert torch.equal(together, apart)


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_runtime_and_the_core_ml_evaluator_give_the_same_integers(name: str, tmp_path: Path) -> None:
    program = quantized(name)
    inputs = [x.numpy() for x in fresh(name)]
    expected = Reference(program)(*fresh(name))[0].numpy()
    ends = (program.program.inputs, program.program.outputs, program.input_grids, program.output_grids)
    export_onnx(program, tmp_path / "model.onnx")
    export_coreml(program, tmp_path / "model.mlpackage")

    (onnx,) = open_saved(SavedModel("onnx", tmp_path / "model.onnx", *ends))(inputs)
    (coreml,) = open_saved(SavedModel("coreml", tmp_path / "model.mlpackage", *ends))(inputs)

    step = program.output_grids[0].scale  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.rint(coreml / step), np.rint(expected / step))
    assert (np.abs(onnx - expected) < 0.5 * step).mean() >= 0.98


def test_a_layer_that_is_read_in_float_is_left_to_torch() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = torch.nn.Linear(6, 6), torch.nn.LayerNorm(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.a(x))

    torch.manual_seed(0)
    x = torch.randn(16, 6)
    program, _ = clean(load_candidate(Two().eval(), example=(x[:1],)).program)
    observed = observe(program)
    calibrate(observed, [(x,)])
    converted = convert(observed)

    (ours,) = Reference(converted)(x)

    assert torch.isfinite(ours).all()
    assert (ours - converted.program.graph(x)[0]).abs().max() < 0.1
