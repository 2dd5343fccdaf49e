"""What a unit is worth, and weights that are made plain before they are ranked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import UsageError
from edgekit.load import load_candidate
from edgekit.stages.prune import Structure, cut, groups, plain, trace
from edgekit.stages.prune.importance import importance
from edgekit_converters.program import Program
from support.narrower import compare, half
from support.tiny_layers import Net, conv

METHODS = ("magnitude", "taylor", "hessian")
IMAGE = (1, 3, 8, 8)


def small(**more: nn.Module | Tensor) -> nn.Module:
    torch.manual_seed(0)
    parts = {"a": conv(3, 8), "b": conv(8, 6), "c": nn.Linear(6, 4)} | more
    return Net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x)))).mean((2, 3))), **parts).eval()


def traced(network: nn.Module, shape: tuple[int, ...] = IMAGE) -> tuple[Program, Structure]:
    program = plain(load_candidate(network, input_shapes=[shape]).program)
    return program, trace(program)


def scores(program: Program, structure: Structure, method: str, seed: int = 0, n: int = 64) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    batches = [(torch.randn(n, *program.example[0].shape[1:], generator=generator),)]
    return importance(program, structure, groups(structure), method, batches, seed=seed)


@pytest.mark.parametrize("method", METHODS)
def test_a_unit_that_nobody_listens_to_matters_least(method: str) -> None:
    network = small()
    with torch.no_grad():
        network.b.weight[:, 5] = 0
        network.c.weight[:, 2] *= 1e-4
    program, structure = traced(network)
    found = scores(program, structure, method)
    first, second = (structure.parameters[name, 0] for name in ("a.weight", "b.weight"))
    assert found.shape == (structure.n_units,)
    assert (found >= 0).all()
    assert found[first].argmin() == 5
    assert found[second].argmin() == 2


@pytest.mark.parametrize("method", ["taylor", "hessian"])
def test_a_rank_is_the_same_for_the_same_seed(method: str) -> None:
    program, structure = traced(small())
    first = scores(program, structure, method)
    assert np.array_equal(first, scores(program, structure, method))
    assert not np.array_equal(first, scores(program, structure, method, seed=1))


def test_what_taylor_predicts_is_about_what_the_answers_lose() -> None:
    """Divergence of the answers without a unit, against the estimate, over all units of a layer."""
    program, structure = traced(small())
    found = scores(program, structure, "taylor", n=256)
    x = torch.randn(256, *IMAGE[1:], generator=torch.Generator().manual_seed(2))
    units = np.unique(structure.parameters["b.weight", 0])
    lost = []
    with torch.no_grad():
        whole = program.graph(x)[0].log_softmax(1)
        for unit in units:
            keep = np.ones(structure.n_units + 1, bool)
            keep[unit] = False
            left = cut(program, structure, keep).graph(x)[0].log_softmax(1)
            lost.append(float((whole.exp() * (whole - left)).sum(1).mean()))
    assert np.corrcoef(found[units], lost)[0, 1] > 0.9


def test_a_fixed_filter_reads_like_a_weight() -> None:
    """A filter bank that is a buffer: what it ignores matters least."""
    bank = torch.randn(6, 8, 3, 3)
    bank[:, 3] = 0
    torch.manual_seed(0)
    network = Net(
        lambda s, x: s.c(F.relu(F.conv2d(F.relu(s.a(x)), s.bank)).mean((2, 3))),
        a=conv(3, 8),
        bank=bank,
        c=nn.Linear(6, 4),
    ).eval()
    program, structure = traced(network)
    for method in METHODS:
        found = scores(program, structure, method)[structure.parameters["a.weight", 0]]
        assert found.argmin() == 3
        assert (np.delete(found, 3) > 0).all()


def test_ranking_changes_no_weight() -> None:
    program, structure = traced(small())
    before = {name: tensor.clone() for name, tensor in program.graph.state_dict().items()}
    flags = [p.requires_grad for p in program.graph.parameters()]
    scores(program, structure, "taylor")
    assert all(torch.equal(before[name], tensor) for name, tensor in program.graph.state_dict().items())
    assert [p.requires_grad for p in program.graph.parameters()] == flags
    assert all(p.grad is None for p in program.graph.parameters())


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_calibration_inputs_that_are_no_numbers_are_refused(value: str) -> None:
    program, structure = traced(small())
    batch = torch.full((2, 3, 8, 8), float(value))
    with pytest.raises(UsageError, match="values that are not finite"):
        importance(program, structure, groups(structure), "hessian", [(batch,)], seed=0)


def test_gradients_that_are_no_numbers_are_refused_with_the_way_out() -> None:
    """At zero, the square root has a value and no gradient."""
    torch.manual_seed(0)
    parts = {"a": conv(3, 8), "b": conv(8, 6), "c": nn.Linear(6, 4)}
    network = Net(lambda s, x: s.c(s.b(s.a(x)).mean((2, 3)).sqrt()), **parts).eval()
    with torch.no_grad():
        network.b.weight.zero_()
        network.b.bias.zero_()
    program, structure = traced(network)
    with pytest.raises(UsageError, match="gradients") as caught:
        scores(program, structure, "taylor")
    assert 'importance = "magnitude"' in str(caught.value)


def test_a_network_that_gives_whole_numbers_only_cannot_be_ranked_by_its_answers() -> None:
    torch.manual_seed(0)
    network = Net(lambda s, x: s.b(F.relu(s.a(x))).argmax(1), a=conv(3, 8), b=conv(8, 4)).eval()
    program, structure = traced(network)
    with pytest.raises(UsageError, match="whole numbers only") as caught:
        scores(program, structure, "taylor")
    assert 'importance = "magnitude"' in str(caught.value)
    assert (scores(program, structure, "magnitude") > 0).any()


def test_weights_that_are_plain_already_are_left_alone() -> None:
    program = load_candidate(small(), input_shapes=[IMAGE]).program
    assert plain(program) is program


def test_a_weight_norm_becomes_the_weight_that_it_gives() -> None:
    normed = nn.utils.parametrizations.weight_norm(conv(3, 8))
    program = load_candidate(small(a=normed), input_shapes=[IMAGE]).program
    made = plain(program)
    x = torch.randn(2, *IMAGE[1:])
    with torch.no_grad():
        assert torch.equal(made.graph(x)[0], program.graph(x)[0])
    tensors = dict(made.graph.named_parameters())
    assert set(tensors) == {"a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"}
    assert torch.equal(tensors["a.weight"], normed.weight)
    assert tensors["a.weight"].requires_grad
    assert "a.parametrizations.weight.original1" in dict(program.graph.named_parameters())
    kept = {node.name for node in program.graph.graph.nodes} & {node.name for node in made.graph.graph.nodes}
    assert {"conv2d", "relu", "conv2d_1", "linear"} <= kept


@pytest.mark.filterwarnings("ignore:The tensor attribute")  # recurrent layers gather their weights anew
@pytest.mark.parametrize("kind", ["convolutions", "lstm"])
def test_a_frozen_torchscript_file_is_pruned_and_ranked(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = IMAGE if kind == "convolutions" else (1, 6, 5)
    network = small() if kind == "convolutions" else _Lstm().eval()
    x = torch.randn(shape)
    torch.jit.save(torch.jit.freeze(torch.jit.trace(network, x)), tmp_path / "frozen.pt")
    loaded = load_candidate(tmp_path / "frozen.pt", input_shapes=[shape]).program
    program = plain(loaded)
    assert not list(loaded.graph.parameters())
    assert len(list(program.graph.parameters())) == len(list(network.parameters()))
    assert not list(program.graph.buffers())
    with torch.no_grad():
        assert torch.equal(program.graph(x)[0], loaded.graph(x)[0])
    structure = trace(program)
    assert (scores(program, structure, "taylor", n=8) > 0).all()
    keep = half(structure)
    assert compare(program, structure, keep, cut(program, structure, keep), (x,)) > 0


def test_equal_constants_of_a_frozen_file_tie_no_layers(tmp_path: Path) -> None:
    """Biases of zero are stored once, and would join every layer that has one."""
    network = small()
    for layer in (network.a, network.b):
        nn.init.zeros_(layer.bias)
    network.b = conv(8, 8)
    network.c = nn.Linear(8, 4)
    nn.init.zeros_(network.b.bias)
    frozen = torch.jit.freeze(torch.jit.trace(network.eval(), torch.randn(IMAGE)))
    torch.jit.save(frozen, tmp_path / "frozen.pt")
    structure = trace(plain(load_candidate(tmp_path / "frozen.pt", input_shapes=[IMAGE]).program))
    assert [len(group.units) for group in groups(structure)] == [8, 8]


class _Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])
