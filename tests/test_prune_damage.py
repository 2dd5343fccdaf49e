"""What leaving a part out does to the answers, measured; and the curves that say it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from edgekit.errors import UsageError
from edgekit.load import load_candidate
from edgekit.stages.prune import Structure, cut, groups, macs, trace
from edgekit.stages.prune.branches import branches, without
from edgekit.stages.prune.damage import (
    FEWEST,
    LEVELS,
    SAMPLES,
    WORST,
    Curve,
    divergence,
    from_arrays,
    measure,
    spread,
    to_arrays,
)
from edgekit_converters.program import Program
from support.tiny_layers import Net, conv

IMAGE = (1, 3, 8, 8)


def network(width: int = 12, classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    parts = {"a": conv(3, width), "b": conv(width, width), "c": nn.Linear(width, classes)}
    return Net(lambda s, x: s.c((F.relu(s.a(x)) + s.b(F.relu(s.a(x)))).mean((2, 3))), **parts).eval()


def chain(width: int = 12) -> nn.Module:
    torch.manual_seed(0)
    parts = {"a": conv(3, width), "b": conv(width, 6), "c": nn.Linear(6, 4)}
    return Net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x)))).mean((2, 3))), **parts).eval()


def traced(module: nn.Module) -> tuple[Program, Structure]:
    program = load_candidate(module, input_shapes=[IMAGE]).program
    return program, trace(program)


def samples(n: int = 16) -> torch.Tensor:
    return torch.randn(n, *IMAGE[1:], generator=torch.Generator().manual_seed(1))


def measured(program: Program, structure: Structure, x: torch.Tensor, multiple: int = 4) -> tuple[Curve, ...]:
    ranks = np.arange(structure.n_units, dtype=float)[::-1]
    found = branches(program, structure)
    return measure(
        program,
        structure,
        groups(structure),
        found,
        ranks,
        [(x,)],
        multiple=multiple,
        step=lambda _: None,
    )


def test_damage_is_the_divergence_of_the_network_that_was_really_cut() -> None:
    program, structure = traced(chain())
    x = samples()
    with torch.no_grad():
        whole = program.graph(x)
    for curve in measured(program, structure, x, multiple=2):
        for n, damage in zip(curve.left[:-1], curve.damage[:-1], strict=True):
            keep = np.ones(structure.n_units + 1, bool)
            keep[curve.order[: len(curve.order) - n]] = False
            with torch.no_grad():
                left = cut(program, structure, keep).graph(x)
            # The maximum over wider ones is taken, so a narrower one is never said to be better.
            assert damage >= divergence(whole, left, [1.0]) / len(x) - 1e-9
        assert curve.damage[0] == pytest.approx(max(curve.damage))
    narrow = measured(program, structure, x, multiple=2)[0]
    keep = np.ones(structure.n_units + 1, bool)
    keep[narrow.order[:2]] = False
    with torch.no_grad():
        left = cut(program, structure, keep).graph(x)
    assert narrow.at(10) == pytest.approx(divergence(whole, left, [1.0]) / len(x), rel=1e-4)


def test_damage_of_a_branch_is_that_of_the_network_without_it() -> None:
    program, structure = traced(network())
    x = samples()
    (branch,) = branches(program, structure)
    *_, curve = measured(program, structure, x)
    with torch.no_grad():
        found = divergence(program.graph(x), without(program, [branch]).graph(x), [1.0]) / len(x)
    assert curve.order.tolist() == [structure.n_units]
    assert curve.at(0) == pytest.approx(found, rel=1e-5)


def test_measuring_changes_nothing_and_repeats() -> None:
    program, structure = traced(network())
    before = {name: tensor.clone() for name, tensor in program.graph.state_dict().items()}
    first, again = (measured(program, structure, samples()) for _ in range(2))
    assert all(torch.equal(before[name], tensor) for name, tensor in program.graph.state_dict().items())
    assert [c.damage for c in first] == [c.damage for c in again]


def test_a_graph_of_one_sample_is_measured_sample_by_sample() -> None:
    program, structure = traced(chain())
    alone = replace(program, dynamic_batch=False)
    together, one_by_one = (measured(p, structure, samples(3)) for p in (program, alone))
    for a, b in zip(together, one_by_one, strict=True):
        assert a.damage == pytest.approx(b.damage, rel=1e-4)


def test_a_wide_layer_is_measured_at_some_widths_only() -> None:
    program, structure = traced(chain(128))
    first, *_ = measured(program, structure, samples(2), multiple=1)
    assert len(first.left) == LEVELS[0] + 1
    assert first.left[0] == 1
    assert first.left[-2:] == (127, 128)


def test_a_large_network_is_measured_with_less_effort(monkeypatch) -> None:
    program, structure = traced(chain(64))
    whole = macs(structure)(np.ones(structure.n_units + 1, bool))
    monkeypatch.setattr("edgekit.stages.prune.damage.MULTIPLICATIONS", 10 * FEWEST * whole)
    seen = []
    among = groups(structure)
    curves = measure(
        program,
        structure,
        among,
        (),
        np.zeros(structure.n_units),
        [(samples(64),)],
        multiple=1,
        step=seen.append,
    )
    assert [len(curve.left) - 1 for curve in curves] == [LEVELS[-1]] * 2
    assert seen[-1].endswith("8 of 8")


def test_large_answers_are_compared_for_fewer_samples(monkeypatch) -> None:
    program, structure = traced(chain())
    sizes = []
    monkeypatch.setattr("edgekit.stages.prune.damage.KEPT", 5 * 4)
    monkeypatch.setattr("edgekit.stages.prune.damage.AT_ONCE", 2 * 4)

    def counted(whole, left, spreads) -> float:
        sizes.append(len(whole[0]))
        return divergence(whole, left, spreads)

    monkeypatch.setattr("edgekit.stages.prune.damage.divergence", counted)
    few = measured(program, structure, samples(16))
    assert sizes
    assert sizes == [2, 2, 1] * (len(sizes) // 3)
    monkeypatch.undo()
    assert few[0].damage == pytest.approx(measured(program, structure, samples(16)[:5])[0].damage, rel=1e-4)


def test_no_more_samples_are_taken_than_wanted() -> None:
    program, structure = traced(chain())
    taken = []

    def batches():
        for _ in range(1000):
            taken.append(1)
            yield (samples(32),)

    ranks = np.zeros(structure.n_units)
    measure(program, structure, groups(structure), (), ranks, batches(), multiple=4, step=lambda _: None)
    assert len(taken) <= SAMPLES // 32 + 1


def test_an_input_that_is_no_number_is_refused() -> None:
    program, structure = traced(chain())
    x = samples()
    x[3] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        measured(program, structure, x)


def test_a_network_that_breaks_without_some_units_is_damaged_most() -> None:
    def divided(s: Net, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(s.a(x)).mean((2, 3))
        return s.c(y / s.b(y).abs())

    torch.manual_seed(0)
    module = Net(divided, a=conv(3, 8), b=nn.Linear(8, 8, bias=False), c=nn.Linear(8, 4)).eval()
    program, structure = traced(module)
    curves = measured(program, structure, samples())
    assert max(curve.damage[0] for curve in curves) <= WORST


def test_whole_numbers_are_compared_by_how_many_differ() -> None:
    a = torch.tensor([[1, 2], [3, 4]])
    assert divergence([a], [a], [1.0]) == 0.0
    assert divergence([a], [torch.tensor([[1, 0], [0, 0]])], [1.0]) == pytest.approx(1.5)


LOGITS = arrays(np.float32, (3, 5), elements=st.floats(-30, 30, width=32))


@settings(deadline=None)
@given(LOGITS, LOGITS)
def test_divergence_is_none_for_equal_answers_and_never_negative(a: np.ndarray, b: np.ndarray) -> None:
    p, q = torch.from_numpy(a), torch.from_numpy(b)
    assert divergence([p], [p], [1.0]) == pytest.approx(0.0, abs=1e-9)
    assert divergence([p], [q], [1.0]) >= -1e-9


def test_values_are_compared_in_units_of_their_spread() -> None:
    a = torch.linspace(-1, 1, 64).reshape(4, 16, 1)
    far, near = (divergence([k * a], [k * a + k / 20], [spread(k * a)]) for k in (100, 1))
    assert far == pytest.approx(near, rel=1e-4)


def test_one_value_for_each_sample_is_compared_by_its_spread_over_all_of_them() -> None:
    """A batch of one sample has no spread of its own."""
    torch.manual_seed(0)
    module = Net(lambda s, x: s.c(F.relu(s.a(x)).mean((2, 3))), a=conv(3, 8), c=nn.Linear(8, 1)).eval()
    program, structure = traced(module)
    together = measured(program, structure, samples(33), multiple=1)
    alone = measured(replace(program, dynamic_batch=False), structure, samples(33), multiple=1)
    for a, b in zip(together, alone, strict=True):
        assert a.damage == pytest.approx(b.damage, rel=1e-4)
        assert 0 < a.damage[0] < 1e3


@pytest.mark.parametrize(
    ("values", "expected"), [([3.0, 3.0], 3.0), ([0.0, 0.0], 1.0), ([1.0, 3.0], 1.0), ([5.0], 5.0)]
)
def test_an_output_without_spread_is_measured_by_its_size(values: list[float], expected: float) -> None:
    assert spread(torch.tensor(values)) == expected


@pytest.mark.parametrize(
    ("left", "damage"),
    [
        ((4, 8), (1.0,)),
        ((4, 7), (1.0, 0.0)),
        ((8, 8), (1.0, 0.0)),
        ((4, 8), (0.0, 1.0)),
        ((4, 8), (2.0, 1.0)),
    ],
)
def test_a_curve_that_makes_no_sense_is_refused(left: tuple[int, ...], damage: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"values|rise|fall"):
        Curve(np.arange(8), left, damage)


def test_a_curve_is_straight_between_its_widths() -> None:
    curve = Curve(np.arange(8), (2, 4, 8), (3.0, 1.0, 0.0))
    assert [curve.at(n) for n in (2, 3, 4, 6, 8)] == [3.0, 2.0, 1.0, 0.5, 0.0]


def test_curves_come_back_from_a_file_as_they_were(tmp_path) -> None:
    program, structure = traced(network())
    curves = measured(program, structure, samples(2))
    np.savez(tmp_path / "curves.npz", allow_pickle=False, **to_arrays(curves))
    with np.load(tmp_path / "curves.npz", allow_pickle=False) as kept:
        again = from_arrays(kept, len(curves))
    for a, b in zip(curves, again, strict=True):
        assert np.array_equal(a.order, b.order)
        assert (a.left, a.damage) == (b.left, b.damage)
