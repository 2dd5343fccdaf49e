"""Linear layers that quantize their input at each call: a reference for each runtime's kernels, proven on its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import zoo
from edgekit.judge import census, prove
from edgekit.recipe import Quantize
from edgekit.stages.quantize.search import Setting, weights_only
from edgekit_converters.onnx import export_onnx
from edgekit_converters.parity import run_reference
from edgekit_converters.predict import Array, SavedModel, open_saved
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.reference import Reference
from edgekit_converters.store import load_program, save_program
from edgekit_converters.tflite import HYBRID_RUNTIME, export_tflite
from edgekit_converters.tflite.hybrid import dynamic_linears
from quantized_programs import noise, program, zoo_program

SETTING = Setting("minmax", equalized=False, compensated=False, corrected=False)
EXPORTS = {"onnx": export_onnx, "tflite": export_tflite}
RANGES = {"onnx": None, "tflite": -1}


def dynamic(source: Program) -> QuantizedProgram:
    quantized = weights_only(source, Quantize(), SETTING, lambda: iter([noise(source, 4)]))
    return replace(quantized, dynamic=True, program=replace(quantized.program, dynamic_batch=False))


def of_zoo(name: str) -> QuantizedProgram:
    model = zoo.BY_NAME[name]
    quantized = weights_only(zoo_program(name), Quantize(), SETTING, lambda: iter([zoo.draw(model, 4)]))
    return replace(quantized, dynamic=True, program=replace(quantized.program, dynamic_batch=False))


def saved(quantized: QuantizedProgram, format: str, folder: Path) -> SavedModel:
    path = folder / f"model.{format}"
    EXPORTS[format](quantized, path)
    ends = (quantized.program.inputs, quantized.program.outputs)
    return SavedModel(format, path, *ends, quantized.input_grids, quantized.output_grids)


def linear(bias: bool = True) -> QuantizedProgram:
    layer = nn.Linear(6, 4, bias=bias)
    return dynamic(program(lambda x, f: f(x), layer, shape=(3, 6)))


def by_hand(quantized: QuantizedProgram, x: Array, axis: int | None) -> Array:
    """One linear layer, in float64, as ONNX's DynamicQuantizeLinear is specified, over all of `x` or each row."""
    state = dict(quantized.program.graph.named_buffers())
    weight = next(v for v in state.values() if v.dtype == torch.int8).numpy().astype(np.float64)
    scales = next(
        n.args[1] for n in quantized.program.graph.graph.nodes if "dequantize_per_channel" in str(n.target)
    )
    step = state[str(scales.target)].numpy().astype(np.float64)
    low = np.minimum(x.min(axis=axis, keepdims=True), 0.0)
    high = np.maximum(x.max(axis=axis, keepdims=True), 0.0)
    scale = np.where(high > low, (high - low) / 255, 1.0)
    zero = np.rint(np.clip(-low / scale, 0, 255))
    integers = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    return np.asarray((integers @ weight.T) * scale * step)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
@given(st.integers(0, 2**32 - 1), st.floats(-30, 30), st.floats(-3, 3))
def test_the_reference_is_the_formula(format: str, seed: int, shift: float, exponent: float) -> None:
    quantized = linear(bias=False)
    x = (np.random.default_rng(seed).normal(size=(1, 3, 6)) * 10**exponent + shift).astype(np.float32)

    (ours,) = run_reference(quantized, [x], format)

    theirs = by_hand(quantized, x.astype(np.float64), RANGES[format])
    # A value on a rounding tie may go either way between float32 and float64: one step of one input.
    slack = np.abs(x).max() / 255 * 2.5
    assert np.abs(ours - theirs).max() <= slack
    assert np.median(np.abs(ours - theirs)) <= 1e-4 * max(1.0, float(np.abs(theirs).max()))


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_zeros_and_constants_are_exact(format: str) -> None:
    quantized = linear()
    x = np.zeros((1, 3, 6), np.float32)
    x[0, 1] = 255.0

    (y,) = run_reference(quantized, [x], format)

    with torch.no_grad():
        (expected,) = quantized.program.graph(torch.from_numpy(x))
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["onnx", "tflite"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_files_hold_at_any_rank_with_and_without_bias(
    format: str, bias: bool, shape: tuple[int, ...], tmp_path: Path
) -> None:
    layer = nn.Linear(6, 4, bias=bias)
    quantized = dynamic(program(lambda x, f: torch.relu(f(x)), layer, shape=shape))
    x = noise(quantized.program, 5, seed=3)[0].numpy()

    (y,) = open_saved(saved(quantized, format, tmp_path))([x])

    np.testing.assert_allclose(y, run_reference(quantized, [x], format)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vit", "text_transformer", "mlp_mixer"])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_file_is_its_own_reference_and_not_that_of_another_runtime(
    name: str, format: str, tmp_path: Path
) -> None:
    quantized = of_zoo(name)
    inputs = [x.numpy() for x in zoo.draw(zoo.BY_NAME[name], 8, 9)]
    model = saved(quantized, format, tmp_path)

    (y,) = open_saved(model)(inputs)
    (mine,), (another,) = (
        run_reference(quantized, inputs, f) for f in (format, "tflite" if format == "onnx" else "onnx")
    )

    assert decibels(mine, y) > 70
    assert decibels(another, y) < 66
    proof = prove(quantized, {format: model}, inputs)[format]
    assert proof.holds
    assert proof.max_steps < 0.1


def test_every_linear_layer_runs_in_integers_and_nothing_else_changes(tmp_path: Path) -> None:
    quantized = of_zoo("vit")
    layers = sum(n.target is torch.ops.aten.linear.default for n in quantized.program.graph.graph.nodes)
    for format in EXPORTS:
        found = census(format, saved(quantized, format, tmp_path).path)
        assert found is not None
        assert sum(found.hybrid.values()) == layers
        # The convolution that cuts the image into patches has int8 weights and computes in float.
        assert sum(n for op, n in found.floating.items() if op in {"Conv", "FusedConv", "CONV_2D"}) == 1


def test_a_runtime_that_does_not_know_such_layers_refuses_the_file(tmp_path: Path) -> None:
    from ai_edge_litert.tools import flatbuffer_utils as files

    model = files.read_model(str(saved(of_zoo("vit"), "tflite", tmp_path).path))
    versions = {
        model.operatorCodes[op.opcodeIndex].version
        for op in model.subgraphs[0].operators
        if files.opcode_to_name(model, op.opcodeIndex) == "FULLY_CONNECTED"
    }
    (minimum,) = (model.buffers[m.buffer].data for m in model.metadata if m.name == b"min_runtime_version")

    assert versions == {12}
    assert bytes(minimum).rstrip(b"\0") == HYBRID_RUNTIME.encode()


def test_a_file_without_such_layers_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    export_tflite(zoo_program("resnet"), path)

    assert dynamic_linears(path.read_bytes(), ()) == path.read_bytes()


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_the_gates_of_a_recurrent_cell_stay_float(format: str, tmp_path: Path) -> None:
    quantized = of_zoo("lstm")
    inputs = [x.numpy() for x in zoo.draw(zoo.BY_NAME["lstm"], 4, 9)]

    proof = prove(quantized, {format: saved(quantized, format, tmp_path)}, inputs)[format]

    assert proof.max_steps < 0.01


@pytest.mark.parametrize("at_run_time", [False, True])
def test_asking_for_integer_ends_makes_no_grid_where_there_is_none(at_run_time: bool, tmp_path: Path) -> None:
    quantized = replace(of_zoo("vit"), dynamic=at_run_time)
    path = tmp_path / "model.tflite"
    export_tflite(quantized, path, io_dtype="int8")
    ends = (quantized.program.inputs, quantized.program.outputs)
    inputs = [x.numpy() for x in zoo.draw(zoo.BY_NAME["vit"], 4, 9)]

    proof = prove(quantized, {"tflite": SavedModel("tflite", path, *ends)}, inputs)["tflite"]

    assert proof.max_steps < 0.01


def test_layers_that_read_one_tensor_quantize_it_once(tmp_path: Path) -> None:
    layers = [nn.Linear(6, 4) for _ in range(3)]
    quantized = dynamic(program(lambda x, *f: tuple(g(x) for g in f), *layers, shape=(3, 6)))
    nodes = onnx.load(saved(quantized, "onnx", tmp_path).path).graph.node

    assert [n.op_type for n in nodes].count("DynamicQuantizeLinear") == 1
    assert [n.op_type for n in nodes].count("MatMulInteger") == 3


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_what_a_sample_gives_does_not_depend_on_its_neighbours(format: str, tmp_path: Path) -> None:
    predict = open_saved(saved(linear(), format, tmp_path))
    quiet, loud = (
        np.full((1, 3, 6), v, np.float32) * np.linspace(-1, 1, 6, dtype=np.float32) for v in (1, 900)
    )

    (together,) = predict([np.concatenate([quiet, loud])])

    np.testing.assert_array_equal(together[:1], predict([quiet])[0])
    (reference,) = run_reference(linear(), [np.concatenate([quiet, loud])], format)
    np.testing.assert_array_equal(reference[:1], run_reference(linear(), [quiet], format)[0])


def test_formats_without_such_kernels_are_the_float_computation_of_the_same_weights() -> None:
    quantized = linear()
    x = noise(quantized.program, 1)[0]
    with torch.no_grad():
        (literal,) = quantized.program.graph(x)

    for format in (None, "coreml"):
        assert torch.equal(Reference(quantized, format)(x)[0], literal)
    assert not torch.equal(Reference(quantized, "onnx")(x)[0], literal)


def test_it_survives_the_disk(tmp_path: Path) -> None:
    quantized = linear()
    save_program(quantized, tmp_path / "program.pt2")
    back = load_program(tmp_path / "program.pt2")
    assert isinstance(back, QuantizedProgram)
    x = noise(back.program, 1)[0].numpy()

    assert back.dynamic
    assert not back.program.dynamic_batch
    np.testing.assert_array_equal(
        run_reference(back, [x], "tflite")[0], run_reference(quantized, [x], "tflite")[0]
    )


def decibels(wanted: Array, found: Array) -> float:
    return float(20 * np.log10(np.linalg.norm(wanted) / np.linalg.norm(found - wanted)))
