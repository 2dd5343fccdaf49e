"""Smoothing keeps the function, adds no op, and gives outlier channels' steps back to the others."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from cleanup_programs import cleaned
from edgekit.recipe import Quantize
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit.stages.quantize.search import Choice, rebuild, search, weights_only
from edgekit.stages.quantize.sites import find_sites
from edgekit.stages.quantize.smooth import ALPHAS, input_ranges, smooth
from edgekit_converters.program import Program, QuantizedProgram
from quantized_programs import aten, by_target, decibels, noise, program, run, zoo_program

WIDTH = 8
WITH_SITES = (
    "vit",
    "text_transformer",
    "convnext",
    "mlp_mixer",
    "einsum_attention",
    "swin_style",
    "gpt_style",
    "stock_encoder",
)


def smoothed(source: Program, alpha: float = 0.5, samples: int = 16) -> tuple[Program, int]:
    return smooth(source, input_ranges(source, [noise(source, samples)]), alpha)


def assert_same_function(source: Program, changed: Program, batch: tuple[Tensor, ...]) -> None:
    for want, got in zip(run(source, batch), run(changed, batch), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def operations(source: Program) -> list[object]:
    return [n.target for n in source.graph.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("name", WITH_SITES)
def test_the_function_of_a_network_stays_and_no_op_is_added(name: str) -> None:
    source, model = zoo_program(name), zoo.BY_NAME[name]
    before = {key: value.clone() for key, value in source.graph.state_dict().items()}
    changed, sites = smooth(source, input_ranges(source, [zoo.draw(model, 4, 1)]), 0.7)

    assert sites > 0
    assert operations(changed) == operations(source)
    assert_same_function(source, changed, zoo.draw(model, 4, 3))
    assert all(torch.equal(value, before[key]) for key, value in source.graph.state_dict().items())
    assert any(not torch.equal(value, before[key]) for key, value in changed.graph.state_dict().items())


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "lstm", "mlp", "unet"])
def test_without_a_site_the_program_itself_comes_back(name: str) -> None:
    source = zoo_program(name)

    assert smooth(source, input_ranges(source, [zoo.draw(zoo.BY_NAME[name], 2)]), 0.5) == (source, 0)


class Block(nn.Module):
    """A pre-norm transformer block with separate projections and a gated MLP."""

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm, self.again = norm(WIDTH), norm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y = F.dropout(self.again(x), 0.1, self.training)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def block(*outliers: int, factor: float = 80.0, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> Program:
    """A block whose norms blow some channels up, as those of trained transformers do; columns make good for it."""
    torch.manual_seed(0)
    module = Block(norm)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_().mul_(0.4)
        for gain in (module.norm, module.again):
            gain.weight.copy_(torch.linspace(0.7, 1.3, WIDTH))
            gain.weight[list(outliers)] *= factor
        for reader in (module.query, module.key, module.value, module.gate, module.up):
            reader.weight[:, list(outliers)] /= factor
    return cleaned(lambda x, m: m(x), module.eval(), shape=(6, WIDTH), dynamic=True)


def snr(source: Program, candidate: Program) -> float:
    observed = observe(candidate)
    calibrate(observed, [noise(candidate, 32)])
    judged = noise(source, 32, seed=1)
    return decibels(run(source, judged)[0], run(convert(observed).program, judged)[0])


def test_outlier_channels_lose_many_decibels_and_smoothing_wins_them_back() -> None:
    source = block(2, 5)
    changed, sites = smoothed(source)

    assert sites == 4
    assert snr(source, changed) > snr(source, source) + 10
    assert snr(source, changed) > snr(block(), block()) - 4


def test_readers_of_one_norm_are_scaled_by_their_joint_maximum() -> None:
    source = block(3)
    readers = ("query", "key", "value")
    ranges = input_ranges(source, [noise(source, 16)])
    changed, _ = smooth(source, ranges, 0.3)

    def constants(which: Program) -> dict[str, Tensor]:
        graph = which.graph
        found = {"gain": graph.get_parameter(by_target(which, aten.layer_norm.default)[0].args[2].target)}
        for name, node in zip(readers, by_target(which, aten.linear.default), strict=False):
            found[name] = graph.state_dict()[node.args[1].target]
        return found

    before, after = constants(source), constants(changed)
    scales = before["gain"] / after["gain"]
    x = next(iter(ranges.values()))
    w = torch.stack([before[name].abs().amax(0) for name in readers]).amax(0)
    wanted = x**0.3 / w**0.7
    torch.testing.assert_close(scales / scales[0], wanted / wanted[0], rtol=1e-4, atol=0)
    for name in ("query", "key"):
        torch.testing.assert_close(after[name], before[name] * scales, rtol=1e-4, atol=1e-6)


class ByHand(nn.Module):
    """RMS norm in parts: a spelling that no pass knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.abs().mean(-1, keepdim=True) + 1e-3) * self.weight


@pytest.mark.parametrize(
    ("norm", "target"), [(nn.RMSNorm, aten.rms_norm.default), (ByHand, aten.mean.dim)], ids=["op", "parts"]
)
def test_rms_norms_are_smoothed(norm: Callable[[int], nn.Module], target: object) -> None:
    source = block(1, norm=norm)
    changed, sites = smoothed(source)

    assert len(by_target(source, target)) == 2
    assert sites == 4
    assert_same_function(source, changed, noise(source, 4, seed=2))
    assert snr(source, changed) > snr(source, source) + 8


def test_a_norm_without_a_gain_is_given_one() -> None:
    source = program(lambda x, f: f(F.layer_norm(x, (WIDTH,))), nn.Linear(WIDTH, 4), shape=(3, WIDTH))
    changed, sites = smoothed(source)

    assert sites == 1
    assert by_target(source, aten.layer_norm.default)[0].args[2] is None
    assert by_target(changed, aten.layer_norm.default)[0].args[2] is not None
    assert operations(changed) == operations(source)
    assert_same_function(source, changed, noise(source, 4, seed=2))


def linear(inputs: int = WIDTH, outputs: int = WIDTH) -> nn.Module:
    return nn.Linear(inputs, outputs)


def norm() -> nn.Module:
    return nn.LayerNorm(WIDTH)


class Constant(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(shape))

    def forward(self) -> Tensor:
        return self.value


# Inputs are [n, 6, 8]; all channels of one site can be scaled.
PASSED = {
    "dropout": (lambda x, n, f: f(F.dropout(n(x), 0.5, training=False)), (norm(), linear())),
    "heads split and joined": (
        lambda x, n, f: f(n(x).unflatten(-1, (2, 4)).transpose(1, 2).transpose(1, 2).flatten(2)),
        (norm(), linear()),
    ),
    "rows flattened into one": (lambda x, n, f: f(n(x).flatten(1)), (norm(), linear(48, 5))),
    "one token": (lambda x, n, f: f(n(x)[:, 0]), (norm(), linear())),
    "mean of tokens": (lambda x, n, f: f(n(x).mean(1)), (norm(), linear())),
    "a gate": (lambda x, f, g, h: h(torch.sigmoid(f(x)) * g(x)), (linear(), linear(), linear())),
    "an offset": (
        lambda x, n, c, f: f(n(x).transpose(1, 2) + c()),
        (norm(), Constant(WIDTH, 1), nn.Conv1d(WIDTH, 4, 1)),
    ),
    "a mean with weights": (
        lambda x, f, g: g(torch.softmax(x @ x.transpose(1, 2), -1) @ f(x)),
        (linear(), linear()),
    ),
    "a convolution": (lambda x, n, c: c(n(x).transpose(1, 2)), (norm(), nn.Conv1d(WIDTH, 4, 3))),
    "a grouped convolution": (
        lambda x, n, c: c(n(x).transpose(1, 2)),
        (norm(), nn.Conv1d(WIDTH, 12, 3, padding=1, groups=4)),
    ),
    "a transposed convolution": (
        lambda x, n, c: c(n(x).transpose(1, 2)),
        (norm(), nn.ConvTranspose1d(WIDTH, 4, 2, 2)),
    ),
    "group norm": (lambda x, n, c: c(n(x)), (nn.GroupNorm(2, 6), nn.Conv1d(6, 4, 3))),
    "a norm over two axes": (lambda x, n, f: f(n(x).flatten(1)), (nn.LayerNorm((6, WIDTH)), linear(48, 5))),
    "no biases": (lambda x, f, g: g(f(x)), (nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False))),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSED)
def test_scales_pass_through(case: str) -> None:
    function, layers = PASSED[case]
    source = program(function, *layers, shape=(6, WIDTH))
    changed, sites = smoothed(source)

    assert sites == 1
    assert find_sites(source)[0].free.all()
    assert_same_function(source, changed, noise(source, 5, seed=2))
    before, after = source.graph.state_dict(), changed.graph.state_dict()
    assert sum(not torch.allclose(after[name], value) for name, value in before.items()) >= 2


class Tied(nn.Module):
    """One layer that is applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.other = norm(), linear()
        self.other.weight = nn.Parameter(torch.ones(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.sigmoid(self.other(self.inner(x))))


REFUSED = {
    "a residual around the reader": (lambda x, n, f: (y := n(x)) + f(y), (norm(), linear())),
    "an activation between": (lambda x, f, g: g(F.gelu(f(x))), (linear(), linear())),
    "an output": (lambda x, n, f: (f(y := n(x)), y), (norm(), linear())),
    "a tied layer": (lambda x, t: t(x), (Tied(),)),
    "a norm applied twice": (lambda x, n, f: f(n(torch.sigmoid(n(x)))), (norm(), linear())),
    "a concatenation": (lambda x, n, f: f(torch.cat([n(x), x], -1)), (norm(), linear(16, 4))),
    "a layer over tokens": (lambda x, n, f: f(n(x).transpose(1, 2)), (norm(), linear(6, 4))),
    "a product with itself": (lambda x, n, f: f((y := n(x)) * y), (norm(), linear())),
    "a divisor": (lambda x, f, g: g(x / f(x)), (linear(), linear())),
    "scores": (lambda x, f, g: g(f(x) @ x.transpose(1, 2)), (linear(), linear(6, 4))),
    "a mean over channels": (lambda x, n, f: f(n(x).mean(2)), (norm(), linear(6, 4))),
    "an offset of one number": (lambda x, n, f: f(n(x) + 1.0), (norm(), linear())),
    "a recurrent reader": (lambda x, n, r: r(n(x))[0], (norm(), nn.GRU(WIDTH, 4, batch_first=True))),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_nothing_moves_across(case: str) -> None:
    function, layers = REFUSED[case]
    assert find_sites(program(function, *layers, shape=(6, WIDTH))) == ()


def test_of_a_fused_projection_only_the_values_are_scaled() -> None:
    def attend(x: Tensor, qkv: nn.Module, out: nn.Module) -> Tensor:
        q, k, v = qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    source = program(attend, linear(WIDTH, 24), linear(), shape=(6, WIDTH))
    (site,) = find_sites(source)
    changed, _ = smoothed(source)

    assert site.free.tolist() == [False] * 16 + [True] * 8
    assert_same_function(source, changed, noise(source, 4, seed=2))


def test_dead_channels_and_extreme_ranges_stay_finite() -> None:
    source = program(lambda x, n, f: f(n(x)), norm(), linear(), shape=(3, WIDTH))
    gain, columns = (source.graph.get_parameter(f"module.layers.{i}.weight").data for i in range(2))
    gain[0], gain[1] = 0.0, gain[1] * 1e-20
    source.graph.get_parameter("module.layers.0.bias").data[:2] = 0.0
    columns[:, 2], columns[:, 3] = 0.0, columns[:, 3] * 1e6
    changed, _ = smoothed(source)

    assert all(p.isfinite().all() for p in changed.graph.parameters())
    assert_same_function(source, changed, noise(source, 4, seed=2))


def searched(source: Program, settings: Quantize) -> Choice:
    def calibration() -> Iterator[tuple[Tensor, ...]]:
        yield from (noise(source, 16, seed) for seed in range(3))

    return search(source, settings, calibration, [noise(source, 16, seed=9)])


QUICK = {"compensation": False, "bias_correction": False}


def test_the_search_smooths_where_it_helps_and_says_so() -> None:
    source = block(2, 5)
    plain = searched(source, Quantize(observers=("minmax",), smooth=False, **QUICK))
    tried = searched(source, Quantize(observers=("minmax",), smooth="try", **QUICK))

    assert [trial.setting.smoothed for trial in tried.trials] == [0.0, *ALPHAS]
    assert tried.best.setting.smoothed in ALPHAS
    assert tried.best.snr_db > plain.best.snr_db + 8
    assert str(tried.best).startswith(f"minmax, smoothed {tried.best.setting.smoothed:g}: ")


def test_observers_are_compared_again_after_smoothing() -> None:
    tried = searched(block(2, 5), Quantize(observers=("percentile", "minmax"), **QUICK))
    alpha = tried.best.setting.smoothed

    assert alpha
    assert {t.setting.observer for t in tried.trials if t.setting.smoothed == alpha} == {
        "percentile",
        "minmax",
    }
    assert tried.best.snr_db == max(trial.snr_db for trial in tried.trials)


@pytest.mark.parametrize(
    "settings", [{"smooth": True, "equalize": True}, {"smooth": "try", "equalize": "try"}]
)
def test_where_nothing_can_be_smoothed_nothing_is_tried(settings: dict[str, object]) -> None:
    source = program(lambda x, c: torch.relu(c(x)), nn.Conv1d(6, 4, 3), shape=(6, WIDTH))
    choice = searched(source, Quantize(observers=("minmax",), **settings, **QUICK))

    assert [str(trial).split(":")[0] for trial in choice.trials] == ["minmax"]


def integers(quantized: QuantizedProgram) -> list[Tensor]:
    graph = quantized.program.graph
    return [
        getattr(graph, n.args[1].args[0].target) for n in by_target(quantized.program, aten.linear.default)
    ]


def test_lower_rungs_have_the_integers_of_the_smoothed_weights() -> None:
    source, settings = block(2, 5), Quantize(observers=("minmax",), smooth=True)

    def calibration() -> Iterator[tuple[Tensor, ...]]:
        yield from (noise(source, 16, seed) for seed in range(3))

    choice = search(source, settings, calibration, [noise(source, 16, seed=9)])
    alone = weights_only(source, settings, choice.best.setting, calibration)
    again = rebuild(source, settings, choice.best.setting, calibration)

    assert choice.best.setting.smoothed
    assert len(integers(choice.program)) == 7
    for lower in (alone, again):
        for wanted, found in zip(integers(choice.program), integers(lower), strict=True):
            assert torch.equal(found, wanted)
    batch = noise(source, 4, seed=5)
    assert torch.equal(run(again.program, batch)[0], run(choice.program.program, batch)[0])
