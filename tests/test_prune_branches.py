"""Residual branches: which sums end one, what is left without it, and when leaving it out is worth it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.networks import ResNet20
from examples.networks.mobile import MobileNetV2
from examples.networks.vision import ViT
from torch import Tensor, nn

from edgekit.load import load_candidate
from edgekit.stages.prune import groups, macs, remove, trace
from edgekit.stages.prune.branches import branches, gated, without
from edgekit.stages.prune.damage import measure
from edgekit.stages.prune.plan import plan
from edgekit_converters.program import Program

IMAGE = (1, 3, 32, 32)


def program_of(module: nn.Module, shape: tuple[int, ...] = IMAGE) -> Program:
    torch.manual_seed(0)
    return load_candidate(module.eval(), input_shapes=[shape]).program


class Sums(nn.Module):
    """Two branches with a shortcut, a sum of two layers side by side, and a sum of what enters with a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(n, 8, 3, 1, 1) for n in (3, 8, 8))
        self.left, self.right = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.first(x).relu()
        x = self.second(x) + x + 1.0
        return self.head((self.left(x) + self.right(x)).mean((2, 3)))


def test_every_block_of_a_residual_network_is_one_branch() -> None:
    program = program_of(ResNet20())
    found = branches(program, trace(program))
    assert [each.weights for each in found] == [
        tuple(f"layer{stage}.{block}.conv{i}.weight" for i in (1, 2))
        for stage in (1, 2, 3)
        for block in range(3)
    ]


def test_attention_and_mlp_are_branches_of_a_transformer() -> None:
    program = program_of(ViT(image=32, patch=8, width=24, depth=2, heads=3, classes=10))
    found = branches(program, trace(program))
    assert [each.weights[0].split(".")[2] for each in found] == ["attention", "mlp"] * 2


def test_only_blocks_with_a_shortcut_are_branches() -> None:
    program = program_of(MobileNetV2(classes=10))
    assert len(branches(program, trace(program))) == 10


def test_a_sum_of_two_layers_gives_its_dearer_one_up_and_a_number_is_no_branch() -> None:
    program = program_of(Sums())
    found = branches(program, trace(program))
    assert [each.weights for each in found] == [("first.weight",), ("second.weight",), ("left.weight",)]


@pytest.mark.parametrize("gone", [(0,), (2,), (0, 1, 2)])
def test_without_a_branch_the_sum_is_its_other_operand(gone: tuple[int, ...]) -> None:
    module = Sums()
    program = program_of(module)
    found = branches(program, trace(program))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        y = module.stem(x).relu()
        y = y if 0 in gone else y + module.first(y).relu()
        y = (y if 1 in gone else module.second(y) + y) + 1.0
        y = module.right(y) if 2 in gone else module.left(y) + module.right(y)
        wanted = module.head(y.mean((2, 3)))
        narrow = without(program, [found[i] for i in gone])
        torch.testing.assert_close(narrow.graph(x)[0], wanted)
    left = {name.split(".")[0] for name, _ in narrow.graph.named_parameters()}
    assert left == {"stem", "first", "second", "left", "right", "head"} - {
        ("first", "second", "left")[i] for i in gone
    }


def test_units_and_branches_go_in_one_step_and_the_costs_know_both() -> None:
    program = program_of(ResNet20())
    structure = trace(program)
    found = branches(program, structure)
    keep = np.ones(structure.n_units + len(found) + 1, bool)
    keep[structure.n_units + 4] = False
    for group in groups(structure):
        keep[group.units[: len(group.units) // 2]] = False
    narrow = remove(program, structure, found, keep)
    count = macs(trace(narrow))
    left = trace(narrow).n_units
    assert count(np.ones(left + 1, bool)) == pytest.approx(macs(structure, found)(keep), rel=1e-6)
    assert narrow.graph(torch.zeros(2, 3, 32, 32))[0].shape == (2, 10)


def with_a_silent_block() -> tuple[Program, nn.Module]:
    """A network whose fifth block adds nothing."""
    module = ResNet20()
    torch.manual_seed(0)
    for block in (*module.layer1, *module.layer2, *module.layer3):
        nn.init.uniform_(block.bn2.weight, 0.5, 1.0)
    nn.init.zeros_(module.layer2[1].bn2.weight)
    return program_of(module), module


def test_a_gate_of_one_changes_nothing_and_one_of_zero_leaves_the_branch_out() -> None:
    program, _ = with_a_silent_block()
    found = branches(program, trace(program))
    x = torch.randn(4, 3, 32, 32)
    graph, gates = gated(program, found)
    assert len(gates) == 9
    with torch.no_grad():
        torch.testing.assert_close(graph(x)[0], program.graph(x)[0])
        gates[2].zero_()
        torch.testing.assert_close(graph(x)[0], without(program, found[2:3]).graph(x)[0])


def test_the_branch_that_does_nothing_does_no_damage_and_is_left_out_first() -> None:
    program, _ = with_a_silent_block()
    structure = trace(program)
    found = branches(program, structure)
    among = groups(structure)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ranks = np.arange(structure.n_units, dtype=float)
    curves = measure(program, structure, among, found, ranks, [(x,)], multiple=16, step=lambda _: None)
    damage = np.array([curve.at(0) for curve in curves[len(among) :]])
    assert damage.argmin() == 4
    assert damage[4] == pytest.approx(0.0, abs=1e-9)
    assert (np.delete(damage, 4) > 1e-6).all()
    cost = macs(structure, found)
    whole = cost(np.ones(structure.n_units + len(found) + 1, bool))
    chosen = plan(structure, among, curves, cost, wanted=0.95 * whole, multiple=16)
    assert np.flatnonzero(~chosen.keep).tolist() == [structure.n_units + 4]


def test_a_network_without_sums_has_no_branches() -> None:
    program = program_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    structure = trace(program)
    assert branches(program, structure) == ()
