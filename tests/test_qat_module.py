"""A quantized program as a trainable module: the same numbers, and the way back to integers."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
import torch
from tests.support.digits import digit_inputs, digit_program
from torch import Tensor, nn
from torch.fx import Node

import zoo
from edgekit.stages.qat.masters import inside_cells, known_weights
from edgekit.stages.qat.module import OnGrid, ends, on_grid, to_quantized
from edgekit.stages.qat.steps import QUANTIZE, families
from edgekit.stages.quantize.apply import compensate, convert
from edgekit.stages.quantize.bias import bias_steps
from edgekit.stages.quantize.equalize import equalize
from edgekit_converters.onnx import export_onnx
from edgekit_converters.parity import run_reference
from edgekit_converters.predict import SavedModel, open_saved
from edgekit_converters.program import QuantizedProgram
from edgekit_converters.store import load_program, save_program
from quantized_programs import aten, by_target, calibrated, noise, program, qd, run, zoo_observed, zoo_program

NETS = ("resnet", "mobilenet_v3", "unet", "vit", "gru", "densenet", "shufflenet_v2")


def tensor(quantized: QuantizedProgram, node: object) -> Tensor:
    assert isinstance(node, Node)
    return operator.attrgetter(str(node.target))(quantized.program.graph).detach()


def weights(quantized: QuantizedProgram) -> list[Tensor]:
    nodes = by_target(quantized.program, qd.dequantize_per_channel.default)
    return [tensor(quantized, n.args[0]) for n in nodes]


def quantize_nodes(quantized: QuantizedProgram) -> dict[str, Node]:
    return {n.name: n for n in by_target(quantized.program, QUANTIZE)}


def train(module: OnGrid, batch: tuple[Tensor, ...], steps: int = 3, rate: float = 0.02) -> None:
    """Some steps towards outputs that are zero, enough to move integers."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(y.square().mean() for y in module(*batch)).backward()
        optimizer.step()


def given(name: str, seed: int = 7) -> tuple[Tensor, ...]:
    return zoo.draw(zoo.BY_NAME[name], 4, seed)


@pytest.mark.parametrize("learned_steps", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_the_module_computes_what_the_program_computes(name: str, learned_steps: bool) -> None:
    quantized = convert(zoo_observed(name))
    module = on_grid(quantized, zoo_program(name), learned_steps=learned_steps)
    with torch.no_grad():
        found = module(*given(name))
    for want, got in zip(run(quantized.program, given(name)), found, strict=True):
        assert torch.equal(want, got)

    back = to_quantized(module, quantized)
    for want, got in zip(weights(quantized), weights(back), strict=True):
        assert torch.equal(want, got)
    assert (back.input_grids, back.output_grids) == (quantized.input_grids, quantized.output_grids)


@pytest.mark.parametrize(
    ("name", "learned_steps"),
    [("mobilenet_v3", False), ("mobilenet_v3", True), ("unet", True), ("gru", False), ("vit", True)],
)
def test_what_was_trained_is_what_the_program_computes(name: str, learned_steps: bool) -> None:
    quantized = convert(zoo_observed(name, weight_bits=5))
    before = [w.clone() for w in weights(quantized)]
    module = on_grid(quantized, zoo_program(name), learned_steps=learned_steps)
    train(module, given(name, 3))
    trained = to_quantized(module, quantized)

    moved = [not torch.equal(a, b) for a, b in zip(before, weights(trained), strict=True)]
    assert all(moved)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(quantized), strict=True)), "input changed"
    assert max(int(w.abs().max()) for w in weights(trained)) <= 15
    assert trained.weight_bits == 5
    with torch.no_grad():
        wanted = module(*given(name))
    for want, got, grid in zip(wanted, run(trained.program, given(name)), trained.output_grids, strict=True):
        step = grid.scale if grid else float(want.max() - want.min()) / 255
        assert (want - got).abs().max() <= 1.01 * step
        assert ((want - got).abs() < 0.01 * step).float().mean() > 0.95
    for node in trained.program.graph.graph.nodes:
        steps = bias_steps(trained.program.graph, node)
        if steps is not None:
            integers = tensor(trained, node.args[2]).double() / steps
            torch.testing.assert_close(integers, integers.round(), rtol=2**-23, atol=1e-6)


def test_everything_that_is_learned_has_a_gradient() -> None:
    for name in NETS:
        module = on_grid(convert(zoo_observed(name)), learned_steps=True)
        sum(y.square().mean() for y in module(*given(name))).backward()
        assert [
            n for n, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()
        ] == []


def test_the_module_holds_no_integers_and_no_weights_of_before() -> None:
    module = on_grid(convert(zoo_observed("resnet")), zoo_program("resnet"))
    held = sum(p.numel() for p in module.parameters())

    assert held == sum(p.numel() for p in dict(zoo_program("resnet").graph.named_parameters()).values())
    assert not [n for n, b in module.named_buffers() if b.dtype == torch.int8]


def test_recurrent_weights_and_float_norms_are_trained() -> None:
    gru = on_grid(convert(zoo_observed("gru")))
    vit = on_grid(convert(zoo_observed("vit")))

    assert len(gru.parts.weights) == 3
    assert {"module.rnn.bias_ih_l0", "module.rnn.bias_hh_l0"} <= set(gru.parts.floats)
    norms = by_target(zoo_program("vit"), aten.layer_norm.default)
    assert norms
    assert {str(a.target) for n in norms for a in n.args[2:4]} <= set(vit.parts.floats)


def test_weights_alone_on_the_grid_are_trained() -> None:
    source = program(lambda x, m: torch.relu(m(x)), nn.Linear(6, 5), shape=(6,))
    quantized = convert(calibrated(source, weights_only=True, weight_bits=4))
    module = on_grid(quantized, source)
    train(module, noise(source, 8))
    trained = to_quantized(module, quantized)

    assert not quantize_nodes(trained)
    with torch.no_grad():
        torch.testing.assert_close(module(*noise(source, 8))[0], run(trained.program, noise(source, 8))[0])


def test_a_graph_of_batch_one_runs_sample_by_sample() -> None:
    source = zoo_program("resnet", dynamic=False)
    quantized = convert(calibrated(source, samples=1))
    module = on_grid(quantized, source)
    x = noise(source, 3)
    with torch.no_grad():
        (together,) = module(*x)

    assert together.shape[0] == 3
    assert torch.equal(together[1:2], run(quantized.program, (x[0][1:2],))[0])


def test_learned_scales_keep_what_must_stay_together() -> None:
    quantized = convert(zoo_observed("densenet"))
    found = families(quantized.program.graph)
    module = on_grid(quantized, learned_steps=True)
    train(module, given("densenet"), rate=0.05)
    before, after = quantize_nodes(quantized), quantize_nodes(to_quantized(module, quantized))
    shared = {root for root in found.root.values() if list(found.root.values()).count(root) > 1}

    assert shared
    for name, root in found.root.items():
        ratio = float(before[name].args[1]) / float(before[root].args[1])
        assert float(after[name].args[1]) == pytest.approx(float(after[root].args[1]) * ratio, rel=1e-6)
        assert after[name].args[2] == before[name].args[2]
        for reader in after[name].users:
            assert reader.args[1:3] == after[name].args[1:3]
    assert any(after[n].args[1] != before[n].args[1] for n in before)


def test_ends_that_were_learned_are_in_the_program() -> None:
    quantized = convert(zoo_observed("resnet"))
    module = on_grid(quantized, learned_steps=True)
    train(module, given("resnet"), rate=0.05)
    trained = to_quantized(module, quantized, ties=[given("resnet")])

    assert trained.input_grids != quantized.input_grids
    assert (trained.input_grids, trained.output_grids) == ends(trained.program.graph)


def test_grids_that_kernels_demand_stay() -> None:
    def gated(x: Tensor, m: nn.Module) -> Tensor:
        return torch.softmax(m(x) * torch.sigmoid(m(x)), 1)

    quantized = convert(calibrated(program(gated, nn.Linear(6, 6), shape=(6,))))
    found, nodes = families(quantized.program.graph), quantize_nodes(quantized)
    fixed = [n for n in nodes if found.learned(n) is None]

    assert sorted(nodes[n].args[0].name for n in fixed) == ["sigmoid", "softmax"]


def test_a_sum_that_changes_no_integer_keeps_its_scale() -> None:
    quantized = convert(zoo_observed("mobilenet_v3"))
    found, nodes = families(quantized.program.graph), quantize_nodes(quantized)
    sums = [n for n in nodes.values() if n.args[0].target is aten.hardtanh.default]

    assert sums
    for node in sums:
        before = node.args[0].args[0].args[0].args[0]
        assert before.args[1] == node.args[1]
        assert found.learned(node.name) is None
        assert found.learned(before.name) is None


def test_equal_scales_of_tensors_that_do_not_meet_are_learned_apart() -> None:
    source = program(
        lambda x, a, b: torch.nn.functional.relu6(b(torch.nn.functional.relu6(a(x) * 9))),
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 3),
        shape=(3, 8, 8),
    )
    quantized = convert(calibrated(source))
    found, nodes = families(quantized.program.graph), quantize_nodes(quantized)
    full = [n for n, node in nodes.items() if float(node.args[1]) == pytest.approx(6 / 255)]

    assert len(full) == 2
    assert len({found.root[n] for n in full}) == 2


def test_constants_in_a_concatenation_hold_its_scale() -> None:
    prefix = torch.ones(1, 2, 3)
    source = program(
        lambda x, m: m(torch.cat([prefix.expand(x.shape[0], -1, -1), x], 1)), nn.Linear(3, 3), shape=(4, 3)
    )
    quantized = convert(calibrated(source))
    module = on_grid(quantized, learned_steps=True)
    train(module, noise(source, 4), rate=0.05)
    trained = to_quantized(module, quantized)
    with torch.no_grad():
        (want,) = module(*noise(source, 4))

    assert (want - run(trained.program, noise(source, 4))[0]).abs().max() <= trained.output_grids[0].scale


def test_master_weights_begin_at_the_float_ones_within_their_cells() -> None:
    source, inputs = digit_program(), digit_inputs()
    observed = calibrated(source, weight_bits=4)
    quantized = convert(compensate(observed, list(inputs.calibration()), centered=True))
    known = known_weights(quantized.program.graph, source)
    nodes = by_target(quantized.program, qd.dequantize_per_channel.default)

    assert len(known) == len(nodes) == 4
    for node in nodes:
        integers, scales = tensor(quantized, node.args[0]), tensor(quantized, node.args[1])
        steps = scales.reshape(-1, *[1] * (integers.dim() - 1))
        master = inside_cells(known[node.name], integers, scales, 0)
        assert torch.equal((master / steps).round(), integers.float())
        inside = ((known[node.name] / steps) - integers).abs() < 0.48
        torch.testing.assert_close(master[inside], known[node.name][inside])
        assert (~inside).any(), "compensation rounds some weights away from the nearest integer"


def test_weights_that_were_equalized_are_not_taken_for_the_float_ones() -> None:
    source = zoo_program("mobilenet_v2")
    changed, pairs = equalize(source)
    quantized = convert(calibrated(changed))
    known = known_weights(quantized.program.graph, source)

    assert pairs
    assert len(known) < len(known_weights(quantized.program.graph, changed)) == len(weights(quantized))
    module = on_grid(quantized, source)
    x = noise(source, 2)
    with torch.no_grad():
        assert torch.equal(module(*x)[0], run(quantized.program, x)[0])


def test_a_program_read_back_from_its_archive_can_be_trained(tmp_path: Path) -> None:
    source = digit_program()
    save_program(convert(calibrated(source, weight_bits=4)), tmp_path / "a.pt2")
    quantized = load_program(tmp_path / "a.pt2")
    assert isinstance(quantized, QuantizedProgram)
    module = on_grid(quantized, source)
    train(module, next(digit_inputs().calibration()))
    trained = to_quantized(module, quantized)
    save_program(trained, tmp_path / "b.pt2")
    again = load_program(tmp_path / "b.pt2")
    x = next(digit_inputs().calibration())

    assert len(known_weights(quantized.program.graph, source)) == 4
    assert torch.equal(run(again.program, x)[0], run(trained.program, x)[0])
    assert again.weight_bits == 4


def test_a_trained_program_is_lowered_like_any_other(tmp_path: Path) -> None:
    source = digit_program()
    quantized = convert(calibrated(source, weight_bits=4))
    module = on_grid(quantized, source, learned_steps=True)
    train(module, next(digit_inputs().calibration()))
    trained = to_quantized(module, quantized)
    path = tmp_path / "model.onnx"
    export_onnx(trained, path)
    ends_of = (trained.program.inputs, trained.program.outputs, trained.input_grids, trained.output_grids)
    x = tuple(t.numpy() for t in next(digit_inputs().calibration()))
    (found,), (wanted,) = open_saved(SavedModel("onnx", path, *ends_of))(x), run_reference(trained, x)

    assert abs(found - wanted).max() <= 1.01 * trained.output_grids[0].scale


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("compensated", [False, True])
def test_integers_keep_to_the_bits_of_the_recipe(bits: int, compensated: bool) -> None:
    source = program(
        lambda x, a, b: b(torch.relu(a(x)).flatten(1)), nn.Conv2d(3, 4, 3), nn.Linear(64, 5), shape=(3, 6, 6)
    )
    observed = calibrated(source, weight_bits=bits)
    if compensated:
        observed = compensate(observed, [noise(source, 16)], centered=True)
    quantized = convert(observed)
    limit = 2 ** (bits - 1) - 1

    assert quantized.weight_bits == bits
    for w in weights(quantized):
        assert w.dtype == torch.int8
        assert int(w.abs().max()) == limit
    module = on_grid(quantized, source)
    train(module, noise(source, 8), steps=2, rate=0.5)
    assert max(int(w.abs().max()) for w in weights(to_quantized(module, quantized))) == limit


def test_dead_channels_stay_finite() -> None:
    layer = nn.Conv2d(3, 4, 3)
    source = program(lambda x, c: c(x), layer, shape=(3, 8, 8))
    with torch.no_grad():
        layer_weight = by_target(source, aten.conv2d.default)[0].args[1]
        operator.attrgetter(str(layer_weight.target))(source.graph)[1] = 0.0
    quantized = convert(calibrated(source, weight_bits=4))
    module = on_grid(quantized, source, learned_steps=True)
    train(module, noise(source, 2))
    trained = to_quantized(module, quantized)

    assert all(p.isfinite().all() for p in module.parameters())
    assert run(trained.program, noise(source, 2))[0].isfinite().all()


def test_nan_in_a_weight_reaches_the_outputs() -> None:
    source = digit_program()
    module = on_grid(convert(calibrated(source)), source)
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = torch.nan
        (out,) = module(*next(digit_inputs().calibration()))

    assert out.isnan().any()


def test_training_and_evaluation_mode_are_the_same() -> None:
    module = on_grid(convert(zoo_observed("mobilenet_v3")), learned_steps=True)
    x = given("mobilenet_v3")
    with torch.no_grad():
        assert torch.equal(module.train()(*x)[0], module.eval()(*x)[0])
