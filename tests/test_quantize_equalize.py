"""Cross-layer equalization keeps the function and evens out the channels."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit.stages.quantize.equalize import equalize, find_pairs
from edgekit_converters.program import Program
from quantized_programs import decibels, noise, program, run, zoo_program

WITH_PAIRS = (
    "resnet",
    "vgg",
    "mobilenet_v1",
    "densenet",
    "unet",
    "ds_cnn",
    "two_streams",
    "resnext",
    "shufflenet_v2",
)


def unbalance(source: Program, sigma: float = 1.5) -> Program:
    """The same function with the channels between each pair scaled at random."""
    graph = copy.deepcopy(source.graph)
    generator = torch.Generator().manual_seed(0)
    for pair in find_pairs(graph):
        weight, bias = (graph.get_parameter(a.target) for a in pair.first.args[1:3])
        after = graph.get_parameter(pair.second.args[1].target)
        scales = torch.exp(torch.randn(len(weight), generator=generator) * sigma)
        weight.data = weight / scales.reshape(-1, *[1] * (weight.dim() - 1))
        bias.data = bias / scales
        after.data = after * scales.reshape(1, -1, *[1] * (after.dim() - 2))
    return replace(source, graph=graph)


@pytest.mark.parametrize("name", WITH_PAIRS)
def test_the_function_of_a_network_stays(name: str) -> None:
    source = zoo_program(name)
    batch = zoo.draw(zoo.BY_NAME[name], 4, 3)
    before = run(source, batch)
    equalized, pairs = equalize(source)

    assert pairs > 0
    for want, got, again in zip(before, run(equalized, batch), run(source, batch), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        assert torch.equal(want, again)


@pytest.mark.parametrize("name", ["yolo_style", "lstm", "vit", "convnext"])
def test_without_a_pair_the_program_itself_comes_back(name: str) -> None:
    source = zoo_program(name)
    assert equalize(source) == (source, 0)


def conv(inputs: int, outputs: int, **options: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


def test_a_badly_scaled_network_gains() -> None:
    source = unbalance(
        program(lambda x, c, d, f: f(torch.relu(d(torch.relu(c(x)))).mean((2, 3))), *three(), shape=(3, 8, 8))
    )
    equalized, pairs = equalize(source)
    inputs, judged = noise(source, 32), noise(source, 32, seed=1)
    (wanted,) = run(source, judged)
    found = []
    for candidate in (source, equalized):
        observed = observe(candidate)
        calibrate(observed, [inputs])
        found.append(decibels(wanted, run(convert(observed).program, judged)[0]))

    assert pairs == 2
    assert found[1] > found[0] + 6


def three() -> tuple[nn.Module, ...]:
    return conv(3, 16), conv(16, 16), nn.Linear(16, 4)


def test_both_sides_of_a_pair_come_to_equal_ranges() -> None:
    source = unbalance(
        program(lambda x, f, g: g(torch.relu(f(x))), nn.Linear(6, 9), nn.Linear(9, 4), shape=(6,))
    )
    for node in find_pairs(source.graph):
        source.graph.get_parameter(node.first.args[2].target).data.zero_()
    graph = equalize(source)[0].graph
    (pair,) = find_pairs(graph)
    first, second = (graph.get_parameter(n.args[1].target) for n in (pair.first, pair.second))

    torch.testing.assert_close(first.abs().amax(1), second.abs().amax(0), rtol=1e-3, atol=1e-6)


LOOKED_THROUGH = {
    "max_pool": (
        lambda x, c, d: d(F.max_pool2d(torch.relu(c(x)), 3, 2, padding=1)),
        (conv(3, 6), conv(6, 4)),
    ),
    "avg_pool": (lambda x, c, d: d(torch.relu(F.avg_pool2d(c(x), 2))), (conv(3, 6), conv(6, 4))),
    "leaky_relu": (lambda x, c, d: d(F.leaky_relu(c(x), 0.1)), (conv(3, 6), conv(6, 4))),
    "upsampling": (lambda x, c, d: d(F.interpolate(c(x), scale_factor=2)), (conv(3, 6), conv(6, 4))),
    "flatten": (lambda x, c, f: f(torch.relu(c(x)).flatten(1)), (conv(3, 6), nn.Linear(384, 4))),
    "mean": (lambda x, c, f: f(torch.relu(c(x)).mean((2, 3))), (conv(3, 6), nn.Linear(6, 4))),
    "groups": (lambda x, c, d: d(torch.relu(c(x))), (conv(3, 6, groups=3), conv(6, 4, groups=2))),
    "depthwise": (lambda x, c, d: d(torch.relu(c(x))), (conv(3, 6), conv(6, 12, groups=6))),
    "into transposed": (
        lambda x, c, d: d(torch.relu(c(x))),
        (conv(3, 6), nn.ConvTranspose2d(6, 4, 2, 2, groups=2)),
    ),
    "from transposed": (lambda x, c, d: d(torch.relu(c(x))), (nn.ConvTranspose2d(3, 6, 2, 2), conv(6, 4))),
    "no bias": (lambda x, c, d: d(torch.relu(c(x))), (conv(3, 6, bias=False), conv(6, 4))),
    "linear over positions": (lambda x, f, g: g(torch.relu(f(x))), (nn.Linear(8, 6), nn.Linear(6, 4))),
}


@pytest.mark.parametrize("case", LOOKED_THROUGH)
def test_scales_pass_through(case: str) -> None:
    function, layers = LOOKED_THROUGH[case]
    source = program(function, *layers, shape=(3, 8, 8))
    equalized, pairs = equalize(source)
    inputs = noise(source, 3, seed=2)

    assert pairs == 1
    (pair,) = find_pairs(equalized.graph)
    moved = equalized.graph.get_parameter(pair.first.args[1].target)
    assert not torch.allclose(moved, source.graph.get_parameter(pair.first.args[1].target))
    for want, got in zip(run(source, inputs), run(equalized, inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(3, 3), conv(3, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


REFUSED = {
    "relu6": (lambda x, c, d: d(F.relu6(c(x))), (conv(3, 6), conv(6, 4))),
    "sigmoid": (lambda x, c, d: d(c(x).sigmoid()), (conv(3, 6), conv(6, 4))),
    "a second reader": (lambda x, c, d: (d(y := torch.relu(c(x))), y), (conv(3, 6), conv(6, 4))),
    "a residual": (lambda x, c, d: d(torch.relu(c(x) + x)), (conv(3, 3), conv(3, 4))),
    "tied weights": (lambda x, m: m(x), (Tied(),)),
    "a linear layer over width": (lambda x, c, f: f(torch.relu(c(x))), (conv(3, 6), nn.Linear(8, 4))),
    "channels moved": (lambda x, c, d: d(torch.relu(c(x)).transpose(1, 2)), (conv(3, 8), conv(8, 4))),
    "mean over channels": (lambda x, c, f: f(torch.relu(c(x)).mean((1, 2))), (conv(3, 6), nn.Linear(8, 4))),
    "rows regrouped": (lambda x, f, g: g(torch.relu(f(x)).flatten(1)), (nn.Linear(8, 6), nn.Linear(144, 4))),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_moves_across(case: str) -> None:
    function, layers = REFUSED[case]
    assert equalize(program(function, *layers, shape=(3, 8, 8)))[1] == 0


def test_dead_channels_and_extreme_ranges_stay_finite() -> None:
    source = program(lambda x, c, d: d(torch.relu(c(x))), conv(3, 6), conv(6, 4), shape=(3, 8, 8))
    (pair,) = find_pairs(source.graph)
    first, second = (source.graph.get_parameter(n.args[1].target).data for n in (pair.first, pair.second))
    first[0], first[1] = 0.0, first[1] * 1e-20
    second[:, 2], second[:, 3] = 0.0, second[:, 3] * 1e5
    equalized, _ = equalize(source)
    inputs = noise(source, 3)

    assert all(p.isfinite().all() for p in equalized.graph.parameters())
    (wanted,), (found,) = run(source, inputs), run(equalized, inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
