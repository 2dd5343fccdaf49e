"""The converted graph: what its integers are, and that no rewrite changes a bit of it."""

import copy
import operator
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

import zoo
from edgekit.stages.quantize.apply import convert
from edgekit.stages.quantize.bias import BIAS_LIMIT, bias_steps, round_biases
from edgekit.stages.quantize.clamps import elide_clamps
from edgekit.stages.quantize.observers import METHODS, ActivationObserver
from edgekit.stages.quantize.rules import WEIGHT_AXIS
from quantized_programs import aten, by_target, calibrated, decibels, noise, program, qd, run, zoo_observed

NETS = ("resnet", "mobilenet_v2", "mobilenet_v3", "densenet", "unet", "vit", "gru", "shufflenet_v2")


def constant(graph: GraphModule, node: object) -> Tensor:
    assert isinstance(node, Node)
    return operator.attrgetter(node.target)(graph).detach()


def unrounded(observed: object) -> GraphModule:
    """As torchao leaves it, before any rewrite of ours."""
    return convert_pt2e(copy.deepcopy(observed.graph), fold_quantize=True)


@pytest.mark.parametrize("name", NETS)
def test_every_layer_on_the_grid_reads_int8_inputs_and_weights(name: str) -> None:
    observed = zoo_observed(name)
    graph = convert(observed).program.graph
    layers = {n.name: n for n in graph.graph.nodes if n.target in WEIGHT_AXIS}
    planned = [op for op in observed.plan.weights if op in layers]

    assert planned or name == "gru"
    for op in planned:
        x, weight = layers[op].args[:2]
        assert x.target is qd.dequantize_per_tensor.default
        assert x.args[3:6] == (-128, 127, torch.int8)
        assert x.args[0].target is qd.quantize_per_tensor.default
        assert x.args[0].args[1:] == x.args[1:]
        assert weight.target is qd.dequantize_per_channel.default
        assert weight.args[3:] == (WEIGHT_AXIS[layers[op].target], -127, 127, torch.int8)
        integers = constant(graph, weight.args[0])
        assert integers.dtype == torch.int8
        assert integers.abs().max() <= 127
        assert not constant(graph, weight.args[2]).any()


def test_seven_bit_weights_stay_within_63() -> None:
    quantized = convert(zoo_observed("mobilenet_v2", weight_bits=7))
    graph = quantized.program.graph
    weights = [
        constant(graph, n.args[0]) for n in by_target(quantized.program, qd.dequantize_per_channel.default)
    ]

    assert quantized.weight_bits == 7
    assert max(int(w.abs().max()) for w in weights) == 63


@pytest.mark.parametrize("name", NETS)
def test_biases_are_int32_multiples_of_their_step(name: str) -> None:
    graph = convert(zoo_observed(name)).program.graph
    found = 0
    for node in graph.graph.nodes:
        steps = bias_steps(graph, node)
        if steps is None:
            continue
        integers = constant(graph, node.args[2]).double() / steps
        assert integers.abs().max() <= 2**31 - 1
        # float32 holds 24 bits of the integer.
        torch.testing.assert_close(integers, integers.round(), rtol=2**-23, atol=1e-6)
        found += 1
    assert found


def test_rounding_biases_again_changes_nothing() -> None:
    graph = convert(zoo_observed("mobilenet_v2")).program.graph
    before = {
        n.name: constant(graph, n.args[2]) for n in graph.graph.nodes if bias_steps(graph, n) is not None
    }
    count = round_biases(graph)

    assert count == len(before)
    for node in graph.graph.nodes:
        if node.name in before:
            assert torch.equal(constant(graph, node.args[2]), before[node.name])


def test_the_bias_of_a_dead_channel_survives() -> None:
    layer = nn.Conv2d(3, 4, 3)
    source = program(lambda x, c: c(x), layer, shape=(3, 8, 8))
    weight, bias = (constant(source.graph, a) for a in by_target(source, aten.conv2d.default)[0].args[1:3])
    weight[1].mul_(1e-12)
    bias[1] = 5.0
    bias[2] = -7.0
    weight[2] = 0.0
    quantized = convert(calibrated(source)).program

    (out,) = run(quantized, noise(source, 3, seed=5))
    (wanted,) = run(source, noise(source, 3, seed=5))
    step = (wanted.max() - wanted.min()) / 255
    assert (out[:, 1] - 5.0).abs().max() <= 0.51 * step
    assert (out[:, 2] + 7.0).abs().max() <= 0.51 * step
    (node,) = by_target(quantized, aten.conv2d.default)
    integers = constant(quantized.graph, node.args[2]).double() / bias_steps(quantized.graph, node)
    assert integers.abs().max() <= BIAS_LIMIT * 1.001
    assert decibels(wanted, out) > 30


def test_two_layers_with_one_bias_get_a_rounded_one_each() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.bias = self.one.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.relu(self.one(x)))

    quantized = convert(calibrated(program(lambda x, m: m(x), Twins(), shape=(4,)))).program
    first, second = by_target(quantized, aten.linear.default)

    assert first.args[2] is not second.args[2]
    for node in (first, second):
        integers = constant(quantized.graph, node.args[2]).double() / bias_steps(quantized.graph, node)
        torch.testing.assert_close(integers, integers.round(), rtol=1e-6, atol=1e-6)


def clamp_then_quantize(low: float, high: float, scale: float, zero_point: int) -> GraphModule:
    graph = Graph()
    x = graph.placeholder("x")
    clamp = graph.call_function(aten.hardtanh.default, (x, low, high))
    grid = (scale, zero_point, -128, 127, torch.int8)
    q = graph.call_function(qd.quantize_per_tensor.default, (clamp, *grid))
    graph.output((graph.call_function(qd.dequantize_per_tensor.default, (q, *grid)),))
    return GraphModule({}, graph)


@settings(max_examples=150, deadline=None)
@given(
    st.floats(-8, 0, width=32),
    st.floats(0, 8, width=32),
    st.floats(2**-10, 0.125, width=32),
    st.integers(-128, 127),
    st.booleans(),
)
def test_eliding_a_clamp_changes_no_bit(
    low: float, high: float, scale: float, zero_point: int, snap: bool
) -> None:
    if snap:
        # Limits on the ends of the grid or half a step off are where rounding decides.
        low, high = scale * (-128.5 - zero_point), scale * (126.5 - zero_point)
    if low > high:
        low, high = high, low
    plain = clamp_then_quantize(low, high, scale, zero_point)
    elided = copy.deepcopy(plain)
    count = elide_clamps(elided)
    elided.recompile()
    half = scale / 2
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([low, high, low + half, high - half])])
    x = torch.cat([x, torch.nextafter(x, torch.tensor(torch.inf)), torch.tensor([-torch.inf, torch.inf])])

    assert torch.equal(plain(x)[0], elided(x)[0])
    assert count == 1 - sum(n.target is aten.hardtanh.default for n in elided.graph.nodes)


@pytest.mark.parametrize(("high", "elided"), [(6.0, 1), (3.0, 0)])
def test_a_clamp_goes_only_where_the_grid_ends_with_it(high: float, elided: int) -> None:
    assert elide_clamps(clamp_then_quantize(0.0, high, 6.0 / 255, -128)) == elided


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "mobilenet_v3", "unet"])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_a_graph_without_its_clamps_has_the_same_outputs(name: str, spread: float) -> None:
    plain = unrounded(zoo_observed(name))
    elided = copy.deepcopy(plain)
    assert elide_clamps(elided) > 0
    elided.recompile()
    batch = tuple(x * spread for x in zoo.draw(zoo.BY_NAME[name], 3, 9))
    with torch.no_grad():
        for want, got in zip(plain(*batch), elided(*batch), strict=True):
            assert torch.equal(want, got)


def test_a_clamp_on_a_grid_with_negative_values_stays() -> None:
    source = program(lambda x, c: (torch.relu(y := c(x)), y), nn.Conv2d(3, 4, 3), shape=(3, 8, 8))
    assert len(by_target(convert(calibrated(source)).program, aten.relu.default)) == 1


def test_converting_twice_gives_the_same_graph_bit_for_bit() -> None:
    observed = zoo_observed("mobilenet_v3")
    one, other = (convert(observed, method="mse").program.graph for _ in range(2))

    assert one.code == other.code
    assert one.state_dict().keys() == other.state_dict().keys()
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def test_converting_leaves_the_observers_for_another_method() -> None:
    observed = zoo_observed("resnet")
    first = convert(observed).program.graph.code
    convert(observed, method="percentile", percentile=99.0)

    assert convert(observed).program.graph.code == first


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite"])
def test_networks_with_relu6_survive_every_observer(name: str, method: str) -> None:
    observed = zoo_observed(name)
    batch = zoo.draw(zoo.BY_NAME[name], 8, 2)
    (wanted,), (best,) = run(observed.program, batch), run(convert(observed).program, batch)
    (found,) = run(convert(observed, method=method).program, batch)

    assert decibels(wanted, found) > decibels(wanted, best) - 6


def test_reading_the_observers_is_quick() -> None:
    observers = [m for m in zoo_observed("yolo_style").graph.modules() if isinstance(m, ActivationObserver)]
    began = time.process_time()
    for observer in observers:
        for method in METHODS:
            observer.grid(method)

    # Half a second for all the tensors of an EfficientNet by one method.
    assert (time.process_time() - began) / (len(observers) * len(METHODS)) < 0.5 / 60


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of minmax, percentile, mse, entropy"):
        convert(zoo_observed("resnet"), method="median")


def test_a_concatenated_constant_lies_on_the_common_grid() -> None:
    class WithConstant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("extra", torch.full((1, 2), 3.0))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.extra.expand(x.shape[0], 2)], dim=1)

    source = program(
        lambda x, f, m, g: g(m(f(x))), nn.Linear(4, 4), WithConstant(), nn.Linear(6, 3), shape=(4,)
    )
    quantized = convert(calibrated(source)).program
    (cat,) = by_target(quantized, aten.cat.default)
    (after,) = cat.users
    grids = {n.args[1:3] for n in (*cat.all_input_nodes, after)}

    assert all(n.target is qd.dequantize_per_tensor.default for n in cat.all_input_nodes)
    assert len(grids) == 1
