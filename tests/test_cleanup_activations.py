"""Every spelling of an activation or a formula ends in one form."""

import math

import pytest
import torch
import torch.nn.functional as F

from cleanup_programs import cleaned, op_counts

BOTH = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
SHAPE = (4, 6)

RELU6 = {
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, 0, 6),
    "clamp": lambda x: x.clamp(0, 6),
    "in-place": lambda x: F.relu6(x + 1, inplace=True) + 0,
    "min-of-relu": lambda x: x.relu().clamp(max=6),
    "clamp-of-relu": lambda x: x.relu().clamp(0, 6),
    "relu-of-clamp": lambda x: x.clamp(0, 6).relu(),
}
HARD_SWISH = {
    "op": F.hardswish,
    "times-sixth": lambda x: x * F.relu6(x + 3) / 6,
    "gate-divided": lambda x: x * (F.relu6(x + 3) / 6),
    "sixth-first": lambda x: (1 / 6) * x * F.relu6(3 + x),
    "hardsigmoid": lambda x: x * F.hardsigmoid(x),
    "clamp": lambda x: x * (x / 6 + 0.5).clamp(0, 1),
    "keras": lambda x: x * F.hardtanh(0.16666667 * x + 0.5, 0, 1),
}
HARD_SIGMOID = {
    "op": F.hardsigmoid,
    "relu6": lambda x: F.relu6(x + 3) / 6,
    "clamp": lambda x: (x * (1 / 6) + 0.5).clamp(0.0, 1.0),
}
GELU = {
    "op": F.gelu,
    "half-x": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "x-half": lambda x: x * 0.5 * (1.0 + torch.erf(x * 0.7071067811865476)),
    "cdf": lambda x: x * (0.5 * (1 + torch.erf(x / 2**0.5))),
}
GELU_TANH = {
    "op": lambda x: F.gelu(x, approximate="tanh"),
    "pow": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0)))),
    "product": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x * x * x))),
    "bracket": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x))),
}


def cases(table: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("function", table.values(), ids=table)


@BOTH
@cases(RELU6)
def test_relu6_is_a_hardtanh(function, dynamic: bool) -> None:
    program = cleaned(function, shape=SHAPE, dynamic=dynamic)

    calls = [node for node in program.graph.graph.nodes if str(node.target).startswith("aten.hardtanh")]
    assert [node.args[1:] for node in calls] == [(0.0, 6.0)]
    assert not op_counts(program).keys() & {"relu", "clamp", "clamp_max", "relu6", "hardtanh_"}


@BOTH
@cases(HARD_SWISH)
def test_hard_swish_is_four_ops_on_the_grid(function, dynamic: bool) -> None:
    program = cleaned(function, shape=SHAPE, dynamic=dynamic)

    assert op_counts(program) == {"add": 1, "hardtanh": 1, "mul": 2}
    (last,) = next(node for node in program.graph.graph.nodes if node.op == "output").args[0]
    source, gate = last.args
    assert source.op == "placeholder"
    assert gate.args[1] == 1 / 6


@cases(HARD_SIGMOID)
def test_hard_sigmoid_is_a_relu6(function) -> None:
    assert op_counts(cleaned(function, shape=SHAPE)) == {"add": 1, "hardtanh": 1, "mul": 1}


@BOTH
def test_silu_is_a_product_with_a_sigmoid(dynamic: bool) -> None:
    assert op_counts(cleaned(F.silu, shape=SHAPE, dynamic=dynamic)) == {"sigmoid": 1, "mul": 1}


@BOTH
@cases(GELU)
def test_gelu_by_erf_is_one_op(function, dynamic: bool) -> None:
    assert op_counts(cleaned(function, shape=SHAPE, dynamic=dynamic)) == {"gelu": 1}


@cases(GELU_TANH)
def test_gelu_by_tanh_is_one_op_and_stays_by_tanh(function) -> None:
    program = cleaned(function, shape=SHAPE)

    assert op_counts(program) == {"gelu": 1}
    (node,) = (node for node in program.graph.graph.nodes if node.op == "call_function")
    assert node.kwargs == {"approximate": "tanh"}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 0.5 * x * (1 + torch.erf(x)),
        lambda x: x * (1 + torch.erf(x / math.sqrt(2))),
        lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.05 * x * x * x))),
        lambda x: x * F.relu6(x + 2) / 6,
        lambda x: x * F.relu6(x + 3) / 5,
        lambda x: F.hardtanh(x / 5 + 0.5, 0, 1),
    ],
)
def test_a_formula_with_other_numbers_is_left_alone(function) -> None:
    ops = op_counts(cleaned(function, shape=SHAPE))

    assert not ops.keys() & {"gelu"}
    assert ops["mul"] >= 1


@pytest.mark.parametrize("op", ["mish", "softplus", "elu", "leaky_relu", "tanh"])
def test_other_activations_stay(op: str) -> None:
    function = getattr(F, op, None) or getattr(torch, op)

    assert op_counts(cleaned(function, shape=SHAPE)) == {op: 1}


@BOTH
@pytest.mark.parametrize("shifted", [True, False])
def test_a_written_out_softmax_is_one_op(shifted: bool, dynamic: bool) -> None:
    def function(x):
        y = torch.exp(x - x.amax(-1, keepdim=True)) if shifted else torch.exp(x)
        return y / y.sum(-1, keepdim=True)

    assert op_counts(cleaned(function, shape=SHAPE, dynamic=dynamic)) == {"softmax": 1}


def layer_norm(x, gain, bias):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-5) * gain + bias


def layer_norm_by_var(x, gain, bias):
    centred = x - x.mean(-1, keepdim=True)
    return gain * (centred * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)) + bias


@BOTH
@pytest.mark.parametrize("function", [layer_norm, layer_norm_by_var])
def test_a_written_out_layer_norm_is_one_op(function, dynamic: bool) -> None:
    gain, bias = torch.rand(6) + 0.5, torch.randn(6)

    program = cleaned(lambda x: function(x, gain, bias), shape=SHAPE, dynamic=dynamic)

    assert op_counts(program) == {"layer_norm": 1, "get_attr": 2}


def test_an_unbiased_variance_is_no_layer_norm() -> None:
    program = cleaned(
        lambda x: (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-5), shape=SHAPE
    )

    assert op_counts(program)["layer_norm"] == 0


@BOTH
def test_a_written_out_rms_norm_is_one_op(dynamic: bool) -> None:
    gain = torch.rand(6) + 0.5

    program = cleaned(
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * gain, shape=SHAPE, dynamic=dynamic
    )

    assert op_counts(program) == {"rms_norm": 1, "get_attr": 1}
