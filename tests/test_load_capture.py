"""Every form of every family becomes the same program, and the batch is free where the network has one."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from edgekit.errors import LoweringError, UsageError
from edgekit.load import load_candidate
from edgekit_converters.program import Program
from edgekit_converters.quiet import quiet_torch
from support.load_models import (
    FAMILIES,
    Branching,
    FixedBatch,
    OverBatch,
    Recurrent,
    Residual,
    Transformer,
    TwoHeads,
    ViewThenChange,
    make,
)

HIGH_LEVEL = {
    "residual": {"conv2d", "batch_norm", "linear", "relu"},
    "inverted": {"conv2d", "batch_norm", "hardswish", "hardsigmoid", "hardtanh", "linear"},
    "unet": {"conv2d", "conv_transpose2d", "silu", "upsample_nearest2d", "cat"},
    "transformer": {"conv2d", "layer_norm", "scaled_dot_product_attention", "linear", "gelu"},
    "recurrent": {"embedding", "lstm", "gru"},
    "two heads": {"conv2d", "linear", "sigmoid", "cat"},
}


def ops_of(program: Program) -> set[str]:
    nodes = program.graph.graph.nodes
    return {n.target._opname for n in nodes if isinstance(n.target, torch._ops.OpOverload)}


def assert_same(program: Program, module: torch.nn.Module, rows: tuple[torch.Tensor, ...]) -> None:
    with torch.no_grad():
        expected = pytree.tree_leaves(module(*rows))
        got = program.graph(*rows)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def saved(form: str, module: torch.nn.Module, rows: tuple[torch.Tensor, ...], path: Path) -> object:
    if form == "module":
        return module
    with quiet_torch():
        if form == "exported":
            torch.export.save(torch.export.export(module, rows), path)
        elif form == "traced":
            torch.jit.trace(module, rows, strict=False, check_trace=False).save(path)
        else:
            torch.jit.script(module).save(path)
    return path


@pytest.mark.parametrize("form", ["module", "exported", "traced", "scripted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_form_computes_the_model_at_any_batch_with_high_level_ops(family, form, tmp_path):
    module, rows = make(family)
    shapes = [tuple(r.shape) for r in rows] if form in ("module", "scripted") else None
    program = load_candidate(saved(form, module, rows, tmp_path / "modèle.bin"), input_shapes=shapes).program
    assert program.dynamic_batch
    assert_same(program, module, tuple(torch.cat([r] * 3) for r in rows))
    assert_same(program, module, rows)
    assert HIGH_LEVEL[family] <= ops_of(program)
    assert not [op for op in ops_of(program) if op.endswith("_") and not op.startswith("_")]
    assert [i.shape for i in program.inputs] == [tuple(r.shape) for r in rows]


@pytest.mark.parametrize("family", ["transformer", "recurrent", "residual"])
@pytest.mark.parametrize("form", ["exported", "traced"])
def test_a_batch_of_two_written_into_the_file_is_set_free(family, form, tmp_path):
    module, rows = make(family)
    pair = tuple(torch.cat([r] * 2) for r in rows)
    program = load_candidate(saved(form, module, pair, tmp_path / "m.pt")).program
    assert program.dynamic_batch
    assert program.inputs[0].shape[0] == 1
    assert_same(program, module, tuple(torch.cat([r] * 5) for r in rows))


def test_a_batch_that_the_author_wrote_into_the_code_is_set_free_by_proof():
    program = load_candidate(FixedBatch(), input_shapes=[(1, 3, 4)]).program
    assert program.dynamic_batch
    rows = torch.randn(4, 3, 4)
    torch.testing.assert_close(program.graph(rows)[0][2:3], program.graph(rows[2:3])[0])


def test_rows_that_depend_on_each_other_keep_batch_one():
    program = load_candidate(OverBatch(), input_shapes=[(1, 3)]).program
    assert not program.dynamic_batch
    assert_same(program, OverBatch(), (torch.randn(1, 3),))


def test_recurrent_states_as_outputs_keep_batch_one():
    program = load_candidate(torch.nn.LSTM(3, 4, batch_first=True), input_shapes=[(1, 5, 3)]).program
    assert not program.dynamic_batch
    assert [o.shape for o in program.outputs] == [(1, 5, 4), (1, 1, 4), (1, 1, 4)]


class Reserved(torch.nn.Module):
    """Submodules and a buffer named like attributes of `torch.fx.GraphModule`; one of the ways out is taken, too."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.code_, self.recompile = (torch.nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("graph", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[n, 4]` to `[n, 4]`."""
        return self.recompile(self.code_(self.code(x)) + self.graph)


@pytest.mark.parametrize("form", ["module", "exported", "traced"])
def test_submodules_may_have_the_names_that_torch_fx_has_for_itself(form, tmp_path):
    module, rows = Reserved().eval(), (torch.randn(3, 4),)
    example = (torch.randn(1, 4),)
    program = load_candidate(saved(form, module, example, tmp_path / "m"), example=example).program
    assert_same(program, module, rows)


def test_names_come_from_the_model():
    program = load_candidate(TwoHeads(), input_shapes=[(1, 1, 6, 6), (1, 3)]).program
    assert [i.name for i in program.inputs] == ["image", "meta"]
    assert [o.name for o in program.outputs] == ["logits", "score"]
    assert [n.name for n in program.graph.graph.find_nodes(op="placeholder")] == ["image", "meta"]


def test_the_callers_module_is_left_as_it_was():
    module = Residual().train()
    before = copy.deepcopy(module.state_dict())
    load_candidate(module, input_shapes=[(1, 3, 8, 8)])
    assert module.training
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_weights_that_a_hook_computes_are_captured_and_the_module_keeps_training():
    module = torch.nn.Sequential(torch.nn.utils.weight_norm(torch.nn.Conv1d(4, 8, 3)), torch.nn.ReLU())
    x = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0))
    expected = module(x)

    graph = load_candidate(module, input_shapes=[(1, 4, 16)]).program.graph

    with torch.no_grad():
        assert torch.allclose(graph(x)[0], expected, atol=1e-6)
    module(x).sum().backward()
    assert module[0].weight_v.grad is not None


def test_what_cannot_be_copied_says_so_and_how_to_go_on():
    class Fixed(torch.nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is only one")

    with pytest.raises(UsageError, match="Fixed cannot be copied: there is only one") as caught:
        load_candidate(Fixed(2, 2), input_shapes=[(1, 2)])
    assert "torch.export.save" in caught.value.way_out


def test_a_program_exported_for_training_is_switched_to_evaluation_and_says_so():
    module, rows = make("residual")
    exported = torch.export.export(copy.deepcopy(module).train(), rows)
    candidate = load_candidate(exported)
    assert_same(candidate.program, module, rows)
    assert any("training" in note for note in candidate.notes)


def test_half_precision_weights_are_computed_in_float32_and_noted():
    module, rows = make("inverted")
    half = copy.deepcopy(module).half()
    candidate = load_candidate(torch.export.export(half, tuple(r.half() for r in rows)))
    assert candidate.program.inputs[0].dtype == "float32"
    assert_same(candidate.program, half.float(), rows)
    assert any("float16" in note for note in candidate.notes)


def test_core_decomposed_programs_come_back_to_high_level_ops():
    module, rows = make("residual")
    core = torch.export.export(module, rows).run_decompositions()
    program = load_candidate(core).program
    assert {"conv2d", "batch_norm", "linear"} <= ops_of(program)
    assert_same(program, module, rows)


def test_a_change_through_a_view_is_captured_functionally():
    program = load_candidate(ViewThenChange(), input_shapes=[(1, 3, 2)]).program
    assert_same(program, ViewThenChange(), (torch.randn(1, 3, 2),))
    assert "copy_" not in ops_of(program)


class Region(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x):
        with torch.no_grad():
            y = self.linear(x)
        return y.relu()


def test_no_grad_regions_are_inlined():
    module = Region().eval()
    program = load_candidate(torch.export.export(module, (torch.randn(1, 3),))).program
    assert ops_of(program) == {"linear", "relu"}
    assert_same(program, module, (torch.randn(1, 3),))


def test_open_sizes_take_the_shape_that_the_user_gives():
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(
        torch.nn.Conv2d(3, 4, 3).eval(),
        (torch.randn(2, 3, 9, 9),),
        dynamic_shapes=({0: auto, 2: auto, 3: auto},),
    )
    assert load_candidate(exported, input_shapes=[(1, 3, 12, 10)]).program.inputs[0].shape == (1, 3, 12, 10)
    assert load_candidate(exported).program.inputs[0].shape == (1, 3, 9, 9)


def test_integer_inputs_are_found_without_an_example():
    program = load_candidate(Recurrent(), input_shapes=[(1, 4)]).program
    assert program.inputs[0].dtype == "int64"


def test_an_example_gives_shapes_and_dtypes():
    candidate = load_candidate(Recurrent(), example=[torch.zeros(8, 4, dtype=torch.int32)])
    assert candidate.program.inputs[0].shape == (1, 4)
    assert candidate.program.inputs[0].dtype == "int32"


def test_wrong_channels_name_the_layer_and_what_it_expects():
    with pytest.raises(UsageError) as caught:
        load_candidate(Residual(), input_shapes=[(1, 1, 8, 8)])
    assert "stem" in str(caught.value)
    assert "3 channels" in caught.value.expected
    assert "--input-shape" in caught.value.way_out


def test_too_few_inputs_are_refused():
    with pytest.raises(UsageError, match="meta"):
        load_candidate(TwoHeads(), input_shapes=[(1, 1, 6, 6)])


def test_a_shape_against_the_program_names_the_right_one():
    exported = torch.export.export(Residual().eval(), (torch.randn(1, 3, 8, 8),))
    with pytest.raises(UsageError) as caught:
        load_candidate(exported, input_shapes=[(1, 3, 16, 16)])
    assert "1×3×8×8" in caught.value.expected
    with pytest.raises(UsageError, match="2 input shapes"):
        load_candidate(exported, input_shapes=[(1, 3, 8, 8), (1, 3)])


def test_unknown_shapes_ask_for_the_option():
    with pytest.raises(UsageError) as caught:
        load_candidate(Transformer())
    assert "--input-shape" in caught.value.way_out


def test_control_flow_on_values_names_the_source_line():
    with pytest.raises(LoweringError) as caught:
        load_candidate(Branching(), input_shapes=[(1, 3)])
    assert caught.value.format == "torch"
    assert "load_models.py" in caught.value.where
    assert "torch.where" in caught.value.way_out


def test_something_else_is_refused():
    with pytest.raises(UsageError, match="int"):
        load_candidate(3)  # type: ignore[arg-type]


def test_the_digest_of_a_module_is_that_of_its_weights():
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    first = load_candidate(module, input_shapes=[(1, 3)])
    assert first.sha256 == load_candidate(copy.deepcopy(module), input_shapes=[(1, 3)]).sha256
    assert (first.params, first.size_bytes, first.form) == (8, 32, "module")
    with torch.no_grad():
        module.bias += 1
    assert first.sha256 != load_candidate(module, input_shapes=[(1, 3)]).sha256


class TimeFirst(torch.nn.Module):
    """Attention along axis 0, as torch's own layers have it by default: `[time, batch, width]`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("exported", [False, True])
def test_time_on_the_first_axis_is_not_taken_for_a_batch(exported: bool, tmp_path: Path) -> None:
    x = torch.randn(8, 1, 16, generator=torch.Generator().manual_seed(1))
    model: object = TimeFirst().eval()
    if exported:
        torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt")
        model = tmp_path / "model.pt"

    program = load_candidate(model, input_shapes=None if exported else [(8, 1, 16)]).program

    assert program.inputs[0].shape == (8, 1, 16)
    assert_same(program, TimeFirst().eval(), (x,))
