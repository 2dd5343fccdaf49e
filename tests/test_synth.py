"""Inputs made from a model alone reproduce what its batch norms remember."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.load import load_candidate
from edgekit.synth import _pink, count_macs, distill_calibration, mismatch
from edgekit_converters.program import Program
from support.load_models import Recurrent, TwoHeads


class Trained(torch.nn.Module):
    """Batch norms that saw smooth images of a known range."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8, momentum=None), torch.nn.ReLU(),
            torch.nn.Conv2d(8, 8, 3, stride=2), torch.nn.BatchNorm2d(8, momentum=None), torch.nn.ReLU(),
        )  # fmt: skip
        random = torch.Generator().manual_seed(2)
        for _ in range(4):
            self.body(_pink((16, 3, 12, 12), random) * deviation + mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))


def trained(mean: float = 0.0, deviation: float = 1.0) -> Program:
    return load_candidate(Trained(mean, deviation), input_shapes=[(1, 3, 12, 12)]).program


def whole_mismatch(program: Program, x: torch.Tensor) -> float:
    """Sum over the batch norms, computed with hooks of our own."""
    total = 0.0
    env: dict[torch.fx.Node, object] = {}

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            result = super().run_node(n)
            env[n] = result
            return result

    with torch.no_grad():
        Watch(program.graph).run(x)
    for node in env:
        if getattr(node.target, "_opname", "") == "batch_norm":
            value, mean, var = env[node.args[0]], env[node.args[3]], env[node.args[4]]
            total += float(mismatch(value, mean, var, node.args[7]))
    return total


def test_distilled_inputs_match_the_batch_norms_far_better_than_noise():
    program = trained(mean=3.0, deviation=0.5)
    batches, _ = distill_calibration(program, n=8, seed=0, steps=20)
    noise = _pink((8, 3, 12, 12), torch.Generator().manual_seed(0))
    assert whole_mismatch(program, batches[0][0]) < 0.2
    assert whole_mismatch(program, noise) > 1.0


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (127.0, 60.0), (0.5, 0.25)])
def test_the_range_of_the_inputs_is_found_from_the_model(mean, deviation):
    batches, _ = distill_calibration(trained(mean, deviation), n=16, seed=0, steps=12)
    values = batches[0][0]
    assert abs(float(values.mean()) - mean) < 0.5 * deviation
    assert 0.5 * deviation < float(values.std()) < 2.0 * deviation
    assert float((values - mean).abs().max()) < 5 * deviation


def test_a_classifier_is_made_sure_of_itself_so_that_its_scores_are_not_clipped(monkeypatch):
    torch.manual_seed(4)
    module = torch.nn.Sequential(Trained(0.0, 1.0), torch.nn.Linear(8, 5))
    program = load_candidate(module, input_shapes=[(1, 3, 12, 12)]).program

    def surest() -> float:
        ((x,),), _ = distill_calibration(program, n=8, seed=0, steps=20)
        with torch.no_grad():
            return float(program.graph(x)[0].softmax(1).amax(1).mean())

    with_wish = surest()
    monkeypatch.setattr("edgekit.synth._DECISION", 0.0)
    assert with_wish > surest() + 0.02


def test_the_same_seed_gives_the_same_inputs_and_another_gives_others():
    program = trained()
    first, second, other = (distill_calibration(program, n=3, seed=s, steps=3)[0] for s in (1, 1, 2))
    assert torch.equal(first[0][0], second[0][0])
    assert not torch.equal(first[0][0], other[0][0])


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 40))
def test_there_are_as_many_samples_as_asked_for(n):
    batches, _ = distill_calibration(_PLAIN, n=n, seed=0, steps=1)
    assert sum(len(batch[0]) for batch in batches) == n


_PLAIN = load_candidate(torch.nn.Linear(5, 2), input_shapes=[(1, 5)]).program


def test_a_large_network_distils_some_and_varies_the_rest(monkeypatch):
    program = trained()
    monkeypatch.setattr("edgekit.synth._WORK_MACS", 16 * 12 * count_macs(program.graph))
    seen = []
    batches, text = distill_calibration(
        program, n=40, seed=0, progress=lambda done, total: seen.append((done, total))
    )
    assert sum(len(b[0]) for b in batches) == 40
    assert seen[-1] == (12, 12)
    assert "12 steps" in text
    assert all(torch.isfinite(b[0]).all() for b in batches)


def test_the_model_is_left_as_it_was():
    program = trained()
    before = {k: v.clone() for k, v in program.graph.state_dict().items()}
    wanted = [p.requires_grad for p in program.graph.parameters()]
    distill_calibration(program, n=2, seed=0, steps=2)
    assert all(torch.equal(before[k], v) for k, v in program.graph.state_dict().items())
    assert [p.requires_grad for p in program.graph.parameters()] == wanted


def test_without_batch_norms_inputs_are_drawn_and_the_report_says_so():
    program = load_candidate(TwoHeads(), input_shapes=[(1, 1, 6, 6), (1, 3)]).program
    batches, text = distill_calibration(program, n=20, seed=0)
    assert [tuple(v.shape) for v in batches[0]] == [(16, 1, 6, 6), (16, 3)]
    assert "no batch norm" in text
    assert "Nothing was measured on real data" in text


def test_tokens_stay_inside_their_table():
    program = load_candidate(Recurrent(), input_shapes=[(1, 6)]).program
    tokens = torch.cat([b[0] for b in distill_calibration(program, n=64, seed=0)[0]])
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert int(tokens.max()) == 10


def test_a_fixed_batch_gets_batches_of_one():
    module = torch.nn.LSTM(3, 4, batch_first=True)
    program = load_candidate(module, input_shapes=[(1, 5, 3)]).program
    batches, _ = distill_calibration(program, n=3, seed=0)
    assert [tuple(b[0].shape) for b in batches] == [(1, 5, 3)] * 3


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="n is 0"):
        distill_calibration(_PLAIN, n=0, seed=0)


@given(st.integers(2, 6), st.integers(1, 5))
def test_mismatch_is_nothing_exactly_for_the_right_statistics(rows, channels):
    x = torch.randn(rows, channels, 5, 4, generator=torch.Generator().manual_seed(rows * 7 + channels))
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    assert float(mismatch(x, mean, var, 0.0)) < 1e-6
    assert float(mismatch(x + 1.0, mean, var, 0.0)) > 0.1
    assert float(mismatch(x * 3.0 - 2.0 * mean.view(1, -1, 1, 1), mean, var, 0.0)) == pytest.approx(
        4.0, rel=1e-3
    )


def test_noise_is_smooth_like_a_photograph():
    image = _pink((4, 3, 32, 32), torch.Generator().manual_seed(0))
    neighbours = torch.corrcoef(torch.stack([image[..., 1:].flatten(), image[..., :-1].flatten()]))[0, 1]
    assert neighbours > 0.7
    assert float(image.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(image.std()) == pytest.approx(1.0, abs=1e-3)


def test_macs_are_counted_by_hand():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 16, 5))
    program = load_candidate(module, input_shapes=[(1, 3, 6, 6)]).program
    assert count_macs(program.graph) == 4 * 16 * 27 + 64 * 5
