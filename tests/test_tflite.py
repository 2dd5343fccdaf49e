"""TFLite files: names, dtypes, what is left of paddings and transposes, integer ends, errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cleanup_programs import cleaned, program_of
from edgekit.stages.quantize.apply import convert
from edgekit_converters.errors import LoweringError
from edgekit_converters.parity import Bound, measure, output_steps, run_reference
from edgekit_converters.predict import SavedModel, open_saved
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.tflite import export_tflite
from edgekit_converters.tflite.layout import channels_last_rules, pad_last
from edgekit_converters.tflite.unfold import unfold_weights
from quantized_programs import calibrated, noise, program, qd, run

tflite = pytest.importorskip("ai_edge_litert.interpreter")


def operators(path: Path) -> list[str]:
    return [op["op_name"] for op in tflite.Interpreter(str(path))._get_ops_details()]


def float_convolutions() -> Program:
    """Two convolutions with the paddings of TensorFlow, a residual, a mean and a linear layer."""
    first, second, head = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(x: Tensor, first: nn.Module, second: nn.Module, head: nn.Module) -> Tensor:
        y = torch.relu(first(F.pad(x, (0, 1, 0, 1))))
        return head((y + torch.relu(second(y))).mean((2, 3)))

    made: Program = program(forward, first, second, head, shape=(3, 8, 8))
    return made


def convolutions() -> QuantizedProgram:
    return convert(calibrated(float_convolutions()))


@pytest.fixture(scope="module")
def quantized() -> QuantizedProgram:
    return convolutions()


def saved(quantized: QuantizedProgram, path: Path, layout: str = "nchw") -> SavedModel:
    source = quantized.program
    return SavedModel(
        "tflite", path, source.inputs, source.outputs, quantized.input_grids, quantized.output_grids,
        layout=layout,
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("ends", ["float32", "int8"])
def test_every_end_and_layout_is_the_same_grid(
    tmp_path: Path, quantized: QuantizedProgram, layout: str, ends: str
) -> None:
    path = tmp_path / "m.tflite"
    export_tflite(quantized, path, layout=layout, io_dtype=ends)
    detail = tflite.Interpreter(str(path)).get_input_details()[0]
    assert detail["dtype"] == np.dtype(ends).type
    assert detail["shape"].tolist() == ([1, 8, 8, 3] if layout == "nhwc" else [1, 3, 8, 8])
    inputs = [x.numpy() for x in noise(quantized.program, 16, seed=3)]
    reference = run_reference(quantized, inputs)
    predict = open_saved(saved(quantized, path, layout))
    proof = measure("tflite", predict, inputs, reference, output_steps(quantized, reference), Bound())
    assert proof.holds, proof


def test_asymmetric_paddings_leave_neither_pad_nor_transpose_inside(
    tmp_path: Path, quantized: QuantizedProgram
) -> None:
    export_tflite(quantized, tmp_path / "m.tflite", layout="nhwc")
    found = operators(tmp_path / "m.tflite")
    assert not {"PAD", "PADV2", "TRANSPOSE"} & set(found), found
    assert found.count("CONV_2D") == 2
    # Integers from end to end: one QUANTIZE at the beginning, one DEQUANTIZE at the end.
    assert (found.count("QUANTIZE"), found.count("DEQUANTIZE")) == (1, 1)


def test_a_channels_first_input_is_transposed_once(tmp_path: Path, quantized: QuantizedProgram) -> None:
    export_tflite(quantized, tmp_path / "m.tflite")
    assert operators(tmp_path / "m.tflite").count("TRANSPOSE") == 1


def test_names_are_those_of_the_program(tmp_path: Path, quantized: QuantizedProgram) -> None:
    source = quantized.program
    named = replace(
        quantized,
        program=replace(
            source,
            inputs=(replace(source.inputs[0], name="camera image.0"),),
            outputs=(replace(source.outputs[0], name="class/scores"),),
        ),
    )
    path = tmp_path / "m.tflite"
    export_tflite(named, path)
    (signature,) = tflite.Interpreter(str(path)).get_signature_list().values()
    assert signature == {"inputs": ["camera_image_0"], "outputs": ["class_scores"]}
    (found,) = open_saved(saved(named, path))([np.zeros((2, 3, 8, 8), np.float32)])
    assert found.shape == (2, 5)


def test_the_same_program_gives_the_same_bytes_and_stays_as_it_is(
    tmp_path: Path, quantized: QuantizedProgram
) -> None:
    inputs = noise(quantized.program, 4)
    (before,) = run(quantized.program, inputs)
    for name in ("a", "b"):
        export_tflite(quantized, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert torch.equal(before, run(quantized.program, inputs)[0])


def test_int64_tokens_become_int32(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(16, 8), nn.Linear(8, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table(tokens).mean(1))

    tokens = torch.randint(0, 16, (1, 6))
    source = program_of(Tokens(), (tokens,))
    export_tflite(source, tmp_path / "m.tflite")
    assert tflite.Interpreter(str(tmp_path / "m.tflite")).get_input_details()[0]["dtype"] == np.int32
    model = SavedModel("tflite", tmp_path / "m.tflite", source.inputs, source.outputs)
    (found,) = open_saved(model)([tokens.numpy()])
    np.testing.assert_allclose(found, run(source, (tokens,))[0].numpy(), atol=1e-5)


def test_an_op_without_a_form_is_named_with_its_line(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.erfcx(x + 1)

    source = program_of(Scaled(), (torch.randn(1, 4),))
    with pytest.raises(LoweringError) as caught:
        export_tflite(source, tmp_path / "m.tflite")
    assert caught.value.op == "aten.special_erfcx"
    assert "test_tflite.py:" in caught.value.where
    assert "leave tflite out of --format" in caught.value.way_out
    assert not (tmp_path / "m.tflite").exists()


def test_a_full_disk_is_not_taken_for_a_missing_form() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    linear = nn.Linear(4, 4)
    with pytest.raises(OSError, match="No space left"):
        export_tflite(cleaned(lambda x, linear: linear(x), linear, shape=(4,)), full)


def test_unfolded_weights_are_the_same_integers_and_the_source_keeps_its_own(
    quantized: QuantizedProgram,
) -> None:
    source = quantized.program.graph
    code = source.code
    unfolded = unfold_weights(source)
    targets = [n.target for n in unfolded.graph.nodes]
    assert targets.count(qd.quantize_per_channel.default) == 3
    inputs = noise(quantized.program, 4)
    with torch.no_grad():
        assert torch.equal(unfolded(*inputs)[0], source(*inputs)[0])
    assert source.code == code


def test_the_pads_of_a_channels_first_tensor_are_reordered_for_channels_last() -> None:
    def padded(pads: list[int]) -> torch.fx.Node:
        graph = torch.fx.Graph()
        x = graph.placeholder("x")
        return graph.call_function(torch.ops.aten.constant_pad_nd.default, (x, pads, 0.5))

    for pads in ([1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8]):
        node = padded(pads)
        x = torch.randn(2, 3, 4, 5)
        wanted = F.pad(x, pads, value=0.5).permute(0, 2, 3, 1)
        pad_last(node)
        assert torch.equal(F.pad(x.permute(0, 2, 3, 1), node.args[1], value=node.args[2]), wanted)


def test_the_rules_are_lent_to_the_library_and_taken_back() -> None:
    from litert_torch._convert.fx_passes.optimize_layout_transposes_pass import layout_rewrite

    before = dict(layout_rewrite.rewriters)
    with pytest.raises(ZeroDivisionError), channels_last_rules():
        _ = 1 / len(set(before) - set(layout_rewrite.rewriters))
    assert dict(layout_rewrite.rewriters) == before


def test_a_float_program_is_written_as_float(tmp_path: Path) -> None:
    source = float_convolutions()
    export_tflite(source, tmp_path / "m.tflite")
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(operators(tmp_path / "m.tflite"))
    (x,) = noise(source, 4)
    saved_float = SavedModel("tflite", tmp_path / "m.tflite", source.inputs, source.outputs)
    (found,) = open_saved(saved_float)([x.numpy()])
    np.testing.assert_allclose(found, run(source, (x,))[0].numpy(), atol=1e-4)
