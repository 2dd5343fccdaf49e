"""An op is found again in the user's file, whatever the graph went through."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgekit.load import load_candidate
from edgekit_converters.errors import LoweringError
from edgekit_converters.source import find_source


class Cumulative(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.logcumsumexp(self.first(x).view(1, 6), 1)


class Sampling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.mean(x)
        return mean + torch.randn_like(mean)


def lines() -> dict[str, str]:
    exported = torch.export.export(Cumulative().eval(), (torch.randn(1, 4),))
    program = load_candidate(exported).program
    assert program.dynamic_batch
    nodes = program.graph.graph.nodes
    return {str(n.target).split(".")[1]: find_source(n) for n in nodes if n.op == "call_function"}


def test_a_line_of_the_user_outlives_the_release_of_the_batch() -> None:
    file, line = lines()["logcumsumexp"].rsplit(":", 1)

    assert Path(file).name == Path(__file__).name
    assert "logcumsumexp" in Path(__file__).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def test_an_op_inside_of_torch_is_named_by_the_line_that_called_it() -> None:
    assert Path(lines()["linear"].rsplit(":", 1)[0]).name == Path(__file__).name


def test_a_network_that_draws_random_numbers_is_refused_by_the_op_and_its_line() -> None:
    with pytest.raises(LoweringError, match=r"aten\.randn_like \(.*test_source\.py:\d+\).*random") as refused:
        load_candidate(Sampling().eval(), example=(torch.randn(1, 4),))

    assert "input of the model" in str(refused.value)
