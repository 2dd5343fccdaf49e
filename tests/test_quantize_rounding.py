"""Rounding with compensation: closer outputs, the same steps, for every kind of layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgekit.stages.quantize import rounding
from edgekit.stages.quantize.apply import compensate, convert
from edgekit.stages.quantize.observers import weight_scales
from edgekit.stages.quantize.rounding import compensated_weights, round_compensated
from quantized_programs import aten, by_target, calibrated, noise, program


def error(weight: Tensor, whole: Tensor, scales: Tensor, moments: Tensor) -> float:
    """Mean square of what rounding does to the outputs."""
    off = (whole * scales.unsqueeze(2) - weight).double()
    return float(torch.einsum("gok,gkl,gol->", off, moments.double(), off))


def correlated(groups: int, k: int, seed: int) -> Tensor:
    """Second moments of inputs that hang together, as those of neighbouring pixels do."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, k, k, generator=generator) + 2.0
    return mix @ mix.transpose(1, 2) / k


@settings(max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(2, 40),
    st.integers(0, 10_000),
    st.sampled_from([127, 63]),
)
def test_whole_numbers_within_the_limit_at_most_as_far_off_as_the_nearest(
    groups: int, outputs: int, k: int, seed: int, limit: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups, outputs, k, generator=generator)
    scales = weight.abs().amax(2) / limit
    moments = correlated(groups, k, seed)

    whole = round_compensated(weight, moments, scales, limit)

    assert torch.equal(whole, whole.round())
    assert whole.abs().max() <= limit
    nearest = (weight / scales.unsqueeze(2)).round().clamp(-limit, limit)
    assert error(weight, whole, scales, moments) <= 1.001 * error(weight, nearest, scales, moments) + 1e-9


def test_correlated_inputs_lose_most_of_the_error() -> None:
    weight = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(1))
    scales = weight.abs().amax(2) / 127
    moments = correlated(1, 64, seed=2)

    whole = round_compensated(weight, moments, scales, 127)

    nearest = (weight / scales.unsqueeze(2)).round()
    assert error(weight, whole, scales, moments) < 0.2 * error(weight, nearest, scales, moments)


def test_independent_inputs_give_the_nearest_integers() -> None:
    weight = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(1))
    scales = weight.abs().amax(2) / 127

    whole = round_compensated(weight, torch.eye(10).expand(2, 10, 10), scales, 127)

    assert torch.equal(whole, (weight / scales.unsqueeze(2)).round())


@pytest.mark.parametrize("moments", [torch.zeros(1, 4, 4), torch.full((1, 4, 4), torch.nan)])
def test_inputs_that_say_nothing_give_the_nearest_integers(moments: Tensor) -> None:
    weight = torch.tensor([[[0.4, -1.0, 0.26, 0.9]]])

    whole = round_compensated(weight, moments, torch.tensor([[0.5]]), 127)

    assert whole.tolist() == [[[1.0, -2.0, 1.0, 2.0]]]


def test_long_rows_are_rounded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    observed = calibrated(program(lambda x, f: f(x), nn.Linear(70, 6), shape=(70,)), samples=64)
    whole = compensate(observed, [noise(observed.program, 64)], centered=True).integers["linear"]

    monkeypatch.setattr(rounding, "BLOCK", 32)
    blocked = compensate(observed, [noise(observed.program, 64)], centered=True).integers["linear"]

    assert whole.shape == blocked.shape == (6, 70)
    assert (whole != blocked).any()
    assert (whole.int() - blocked.int()).abs().max() <= 2


LAYERS = {
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), (4, 9, 7)),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2)), (4, 9, 7)),
    "same": (nn.Conv2d(4, 6, (4, 3), padding="same"), (4, 9, 7)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), (4, 9, 7)),
    "conv1d": (nn.Conv1d(4, 6, 5, padding=2, dilation=2), (4, 30)),
    "same1d": (nn.Conv1d(4, 6, 4, padding="same"), (4, 30)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 9, 7)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), (4, 30)),
    "linear": (nn.Linear(24, 5), (9, 24)),
    "one_value": (nn.Conv2d(1, 1, 1), (1, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_of_every_kind_of_layer_come_closer(name: str) -> None:
    layer, shape = LAYERS[name]

    def smooth(x: Tensor, f: nn.Module) -> Tensor:
        return f(x)

    source = program(smooth, layer, shape=shape)
    (x,) = noise(source, 48)
    # Inputs that hang together, as those behind a ReLU do, are what compensation lives on.
    x = x + 3
    observed = calibrated(source)
    (op,) = observed.plan.weights

    weights = compensated_weights(
        observed.program.graph, observed.plan.weights, [(x,)], limit=127, centered=False
    )

    (node,) = [n for n in observed.program.graph.graph.nodes if n.name == op]
    weight = dict(observed.program.graph.named_parameters())[str(node.args[1].target)].detach()
    axis = observed.plan.weights[op][1]
    scales = weight_scales(weight, axis, 127).reshape([-1 if i == axis else 1 for i in range(weight.dim())])
    twin = program(smooth, layer, shape=shape).graph

    def output(weight: Tensor) -> Tensor:
        dict(twin.named_parameters())[str(node.args[1].target)].data.copy_(weight)
        with torch.no_grad():
            return twin(x)[0].double()

    wanted = output(weight)
    ours, nearest = output(weights[op] * scales), output((weight / scales).round() * scales)
    assert weights[op].dtype == torch.int8
    assert weights[op].shape == weight.shape
    assert (ours - wanted).square().sum() <= (nearest - wanted).square().sum() * (
        1.0 if name == "one_value" else 0.9
    )


def test_a_weight_that_two_layers_share_stays_nearest() -> None:
    shared = nn.Linear(5, 5)
    observed = calibrated(program(lambda x, f: f(torch.relu(f(x))), shared, shape=(5,)))

    assert compensate(observed, [noise(observed.program, 8)], centered=True).integers == {}


def test_the_converted_graph_carries_the_integers() -> None:
    observed = calibrated(program(lambda x, c: torch.relu(c(x)), nn.Conv2d(3, 4, 3), shape=(3, 8, 8)))
    observed = compensate(observed, [noise(observed.program, 16)], centered=True)

    quantized = convert(observed).program

    (conv,) = by_target(quantized, aten.conv2d.default)
    frozen = getattr(quantized.graph, conv.args[1].args[0].target)
    assert torch.equal(frozen, observed.integers[conv.name])


def test_the_same_inputs_give_the_same_integers() -> None:
    observed = calibrated(program(lambda x, c: c(x), nn.Conv2d(8, 8, 3), shape=(8, 12, 12)))

    twice = [compensate(observed, [noise(observed.program, 16)], centered=True).integers for _ in range(2)]

    assert torch.equal(*(found["conv2d"] for found in twice))
