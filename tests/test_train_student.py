"""Another network is trained in the place of the original where it takes and gives the same."""

from __future__ import annotations

import pytest
import torch
from tests.support.tiny_training import ConvNet, convnet
from torch import nn

from edgekit.errors import UsageError
from edgekit.stages.train.student import load_student


def narrow():
    return ConvNet(2)


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 4))


def other_outputs():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 5))


def other_inputs():
    return nn.Conv2d(3, 4, 3)


def asks(width):
    return ConvNet(width)


def gives_text():
    return "network"


def spec(name: str) -> str:
    return f"{__name__}:{name}"


@pytest.mark.parametrize("name", ["narrow", "flat"])
def test_a_student_has_the_teachers_ends(name):
    teacher = convnet()
    student = load_student(spec(name), teacher, seed=0)
    assert (student.inputs, student.outputs) == (teacher.inputs, teacher.outputs)
    assert student.dynamic_batch
    assert student.graph(torch.zeros(3, 1, 6, 6))[0].shape == (3, 4)


def test_a_students_weights_come_from_the_seed_and_leave_the_callers_numbers_alone():
    torch.manual_seed(3)
    weights = [
        next(load_student(spec("narrow"), convnet(), seed=seed).graph.parameters()) for seed in (1, 1, 2)
    ]
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other_outputs", r"has the outputs float32 \(1, 5\)"),
        ("asks", "raised TypeError"),
        ("gives_text", "gave a str"),
        ("nowhere", "has no attribute 'nowhere'"),
    ],
)
def test_a_student_that_does_not_do_is_named(name, words):
    with pytest.raises(UsageError, match=words) as caught:
        load_student(spec(name), convnet(), seed=0)
    assert spec(name) in caught.value.what


def test_a_student_of_other_inputs_is_named():
    with pytest.raises(UsageError, match="refuses inputs of shape"):
        load_student(spec("other_inputs"), convnet(), seed=0)


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="No module named 'no_such_module'"):
        load_student("no_such_module:net", convnet(), seed=0)
