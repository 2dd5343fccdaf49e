"""Bias correction gives layers their float means back."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from edgekit.stages.quantize.apply import Observed, convert
from edgekit.stages.quantize.bias import bias_steps, round_biases
from edgekit.stages.quantize.correct import _trusted, correct_biases, float_means
from edgekit.stages.quantize.execute import walk
from edgekit_converters.program import Program
from quantized_programs import aten, by_target, calibrated, decibels, noise, program, run, zoo_observed


def skewed(x: Tensor) -> Tensor:
    """Inputs whose mean is far from zero, so that rounding a weight shifts the mean of the output."""
    return x.abs() + 1.0


def corrected(observed: Observed, batches: list[tuple[Tensor, ...]]) -> tuple[Program, int]:
    quantized = convert(observed).program
    wanted = float_means(observed.program.graph, observed.plan.weights, batches)
    count = correct_biases(quantized.graph, wanted, batches)
    round_biases(quantized.graph)
    quantized.graph.graph.eliminate_dead_code()
    quantized.graph.recompile()
    return quantized, count


def mean_errors(observed: Observed, quantized: Program, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """Largest error of a channel mean for every convolution and linear layer."""
    layers = {aten.conv2d.default, aten.conv1d.default, aten.linear.default}

    def means(source: Program) -> dict[str, Tensor]:
        found = {n.name: v for n, v in walk(source.graph, batch) if n.target in layers}
        return {k: v.transpose(0, 1).flatten(1).mean(1) for k, v in found.items()}

    wanted, found = means(observed.program), means(quantized)
    return {name: float((wanted[name] - found[name]).abs().max()) for name in wanted}


def coarse() -> tuple[Observed, tuple[Tensor, ...]]:
    layers = (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Linear(8, 4))
    source = program(
        lambda x, c, d, f: f(torch.relu(d(torch.relu(c(x)))).mean((2, 3))), *layers, shape=(3, 12, 12)
    )
    batch = (skewed(noise(source, 48)[0]),)
    observed = calibrated(source, weight_bits=7)
    observed.graph(*batch)
    return observed, batch


def test_means_of_every_layer_come_back() -> None:
    observed, batch = coarse()
    before = mean_errors(observed, convert(observed).program, batch)
    quantized, count = corrected(observed, [batch])
    after = mean_errors(observed, quantized, batch)

    assert count == 3
    for name, error in before.items():
        steps = next(bias_steps(quantized.graph, n) for n in quantized.graph.graph.nodes if n.name == name)
        assert after[name] < 0.35 * error + float(steps.max())


def test_the_split_into_batches_does_not_matter() -> None:
    observed, (x,) = coarse()
    whole, _ = corrected(observed, [(x,)])
    parts, _ = corrected(observed, [(x[:7],), (x[7:8],), (x[8:],)])

    for a, b in zip(
        by_target(whole, aten.conv2d.default), by_target(parts, aten.conv2d.default), strict=True
    ):
        one, other = (getattr(p.graph, n.args[2].target) for p, n in ((whole, a), (parts, b)))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_layer_without_bias_gets_one_on_the_int32_grid() -> None:
    layers = (nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.Linear(8, 4, bias=False))
    source = program(lambda x, c, f: f(c(x).mean((2, 3))), *layers, shape=(3, 12, 12))
    batch = (skewed(noise(source, 32)[0]),)
    observed = calibrated(source)
    observed.graph(*batch)
    plain = convert(observed).program
    assert all(bias_steps(plain.graph, n) is None for n in plain.graph.graph.nodes)
    quantized, count = corrected(observed, [batch])

    assert count == 2
    (node,) = by_target(quantized, aten.conv2d.default)
    assert node.args[3] == [2, 2]
    integers = getattr(quantized.graph, node.args[2].target).double() / bias_steps(quantized.graph, node)
    torch.testing.assert_close(integers, integers.round(), rtol=1e-6, atol=1e-6)
    assert integers.any()
    (wanted,) = run(source, batch)
    assert decibels(wanted, run(quantized, batch)[0]) > decibels(wanted, run(plain, batch)[0])


def test_every_kind_of_layer_is_corrected_along_its_channels() -> None:
    layers = (nn.Conv1d(2, 6, 3), nn.ConvTranspose2d(1, 4, 2, 2), nn.Linear(20, 3))

    def function(x: Tensor, c: nn.Module, t: nn.Module, f: nn.Module) -> Tensor:
        return f(t(c(x).unsqueeze(1)))

    source = program(function, *layers, shape=(2, 12))
    batch = (skewed(noise(source, 32)[0]),)
    observed = calibrated(source, weight_bits=7)
    observed.graph(*batch)
    quantized, count = corrected(observed, [batch])
    (wanted,) = run(source, batch)

    assert count == 3
    error = (wanted - run(quantized, batch)[0]).mean((0, 1, 2)).abs()
    plain = (wanted - run(convert(observed).program, batch)[0]).mean((0, 1, 2)).abs()
    assert error.max() < 0.3 * plain.max() + 1e-3


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3", "unet", "gru"])
def test_networks_with_a_free_batch_keep_or_gain_precision(name: str) -> None:
    observed = zoo_observed(name)
    model = zoo.BY_NAME[name]
    quantized, count = corrected(observed, [zoo.draw(model, 6, 1), zoo.draw(model, 10, 2)])
    judged = zoo.draw(model, 24, 7)
    wanted = run(observed.program, judged)[0]

    assert count == len([n for n in observed.plan.weights if "#" not in n])
    plain = decibels(wanted, run(convert(observed).program, judged)[0])
    assert decibels(wanted, run(quantized, judged)[0]) > plain - 0.5


def test_layers_kept_float_keep_their_bias() -> None:
    source = program(lambda x, f, g: g(F.relu(f(x))), nn.Linear(6, 6), nn.Linear(6, 3), shape=(6,))
    observed = calibrated(source, keep_float=["linear"])
    quantized, count = corrected(observed, [noise(source, 16)])

    assert count == 1
    first = by_target(quantized, aten.linear.default)[0]
    kept = by_target(source, aten.linear.default)[0]
    assert torch.equal(
        quantized.graph.get_parameter(first.args[2].target), source.graph.get_parameter(kept.args[2].target)
    )


def test_without_batches_nothing_changes() -> None:
    observed, batch = coarse()
    quantized, count = corrected(observed, [])

    assert count == 0
    assert torch.equal(run(quantized, batch)[0], run(convert(observed).program, batch)[0])


def test_noise_of_a_few_samples_is_not_learned() -> None:
    """Values that only scatter around the float ones need no correction; a common shift does."""
    generator = torch.Generator().manual_seed(0)
    scatter = torch.randn(16, 1000, generator=generator)

    assert _trusted(scatter).square().sum() < 0.5 * scatter.mean(0).square().sum()
    torch.testing.assert_close(_trusted(scatter * 0.01 + 2.0), torch.full((1000,), 2.0), rtol=0.01, atol=0.0)
    torch.testing.assert_close(_trusted(scatter[:1]), scatter[0])
    assert not _trusted(torch.zeros(4, 3)).any()
