"""Batch norm folding: forward, backward, alone, and where it must keep its hands off."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cleanup_programs import cleaned, op_counts, settled_norm

BOTH = pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
PLANE = (4, 7, 6)

CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d, 6, PLANE),
    "bias-free": (lambda: nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d, 6, PLANE),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d, 4, PLANE),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d, 6, PLANE),
    "1d": (lambda: nn.Conv1d(4, 6, 3), nn.BatchNorm1d, 6, (4, 9)),
    "3d": (lambda: nn.Conv3d(4, 6, 2), nn.BatchNorm3d, 6, (4, 3, 4, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d, 6, PLANE),
    "transposed-grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d, 6, PLANE),
    "transposed-1d": (lambda: nn.ConvTranspose1d(4, 6, 3, bias=False), nn.BatchNorm1d, 6, (4, 9)),
    "linear": (lambda: nn.Linear(4, 6), nn.BatchNorm1d, 6, (4,)),
    "same-string": (lambda: nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d, 6, PLANE),
}


@BOTH
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_batch_norm_folds_into_the_layer_before(case: str, dynamic: bool) -> None:
    make, norm, channels, shape = CONVOLUTIONS[case]

    program = cleaned(
        lambda x, layer, bn: bn(layer(x)).relu(),
        make(),
        settled_norm(norm(channels)),
        shape=shape,
        dynamic=dynamic,
    )

    ops = op_counts(program)
    # One layer, its weight and its bias, the relu; nothing else is left.
    assert ops["get_attr"] == 2
    assert sum(ops.values()) == 4
    assert ops["relu"] == 1


@BOTH
def test_a_batch_norm_whose_convolution_is_read_elsewhere_stays_apart(dynamic: bool) -> None:
    conv, norm = nn.Conv2d(4, 6, 3), settled_norm(nn.BatchNorm2d(6))
    weight = conv.weight.detach().clone()

    program = cleaned(lambda x, c, b: b(y := c(x)) * y, conv, norm, shape=PLANE, dynamic=dynamic)

    assert op_counts(program)["conv2d"] == 2, "the batch norm is a depthwise convolution of its own"
    tensors = dict(program.graph.named_parameters())
    assert any(torch.equal(weight, tensor) for tensor in tensors.values())


def test_convolutions_that_share_a_weight_fold_each_their_own_batch_norm() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    norms = settled_norm(nn.BatchNorm2d(4), 1), settled_norm(nn.BatchNorm2d(4), 2)

    program = cleaned(lambda x, c, a, b: b(c(a(c(x)).relu())), conv, *norms, shape=PLANE)

    ops = op_counts(program)
    assert ops["batch_norm"] == 0
    assert ops["conv2d"] == 2
    assert ops["get_attr"] == 4


def test_the_original_program_keeps_its_weights() -> None:
    conv, norm = nn.Conv2d(4, 4, 3), settled_norm(nn.BatchNorm2d(4))
    weight = conv.weight.detach().clone()

    cleaned(lambda x, c, b: b(c(x)), conv, norm, shape=PLANE)

    assert torch.equal(conv.weight, weight)


@BOTH
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_batch_norm_folds_forward_into_a_convolution_without_padding(groups: int, dynamic: bool) -> None:
    conv, norm = nn.Conv2d(4, 8, 3, groups=groups, bias=groups == 2), settled_norm(nn.BatchNorm2d(4))

    program = cleaned(lambda x, b, c: c(b(x)), norm, conv, shape=PLANE, dynamic=dynamic)

    assert op_counts(program)["conv2d"] == 1
    assert op_counts(program)["batch_norm"] == 0


def test_a_batch_norm_before_a_padded_convolution_does_not_fold_forward() -> None:
    conv, norm = nn.Conv2d(4, 8, 3, padding=1), settled_norm(nn.BatchNorm2d(4))

    program = cleaned(lambda x, b, c: c(b(x)), norm, conv, shape=PLANE)

    assert op_counts(program)["conv2d"] == 2


@BOTH
@pytest.mark.parametrize(
    ("norm", "shape", "op"),
    [
        (nn.BatchNorm2d(4), PLANE, "conv2d"),
        (nn.BatchNorm1d(4), (4, 9), "conv1d"),
        (nn.BatchNorm3d(4), (4, 3, 3, 3), "conv3d"),
        (nn.BatchNorm2d(4, affine=False), PLANE, "conv2d"),
    ],
    ids=["2d", "1d", "3d", "no-affine"],
)
def test_a_lone_batch_norm_is_a_depthwise_convolution(
    norm: nn.Module, shape: tuple[int, ...], op: str, dynamic: bool
) -> None:
    program = cleaned(lambda x, b: b(x).relu(), settled_norm(norm), shape=shape, dynamic=dynamic)

    calls = [node for node in program.graph.graph.nodes if node.op == "call_function"]
    assert op_counts(program)[op] == 1
    assert calls[0].args[6] == 4, "one group per channel"


def test_a_lone_batch_norm_on_features_multiplies_and_adds() -> None:
    program = cleaned(lambda x, b: b(x), settled_norm(nn.BatchNorm1d(5)), shape=(5,))

    assert op_counts(program) == {"mul": 1, "add": 1, "get_attr": 2}


def test_a_batch_norm_that_uses_batch_statistics_stays() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)

    program = cleaned(lambda x, c, b: b(c(x)), nn.Conv2d(4, 4, 1), norm, shape=PLANE)

    assert op_counts(program)["batch_norm"] + op_counts(program)["instance_norm"] >= 1


@settings(max_examples=12, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3]),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    transposed=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_convolution_and_batch_norm_fold_exactly(
    *, groups: int, per_group: tuple[int, int], kernel: int, transposed: bool, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.ConvTranspose2d if transposed else nn.Conv2d
    inputs, outputs = groups * per_group[0], groups * per_group[1]
    conv = layer(inputs, outputs, kernel, groups=groups, bias=bias)

    program = cleaned(
        lambda x, c, b: b(c(x)), conv, settled_norm(nn.BatchNorm2d(outputs), seed), shape=(inputs, 5, 4)
    )

    assert op_counts(program)["get_attr"] == 2
    assert op_counts(program)["batch_norm"] == 0


@BOTH
def test_layer_scale_and_frozen_norms_fold_into_the_layer(dynamic: bool) -> None:
    scale, shift = torch.rand(6) + 0.5, torch.randn(6)

    program = cleaned(
        lambda x, c, linear: (
            linear((c(x) * scale[:, None, None] + shift[:, None, None]).permute(0, 2, 3, 1)) * scale * 0.5
        ),
        nn.Conv2d(4, 6, 1),
        nn.Linear(6, 6, bias=False),
        shape=PLANE,
        dynamic=dynamic,
    )

    assert op_counts(program) == {"conv2d": 1, "permute": 1, "linear": 1, "get_attr": 4}


def test_a_constant_over_the_plane_is_not_folded() -> None:
    plane = torch.randn(7, 6)

    program = cleaned(lambda x, c: c(x) + plane, nn.Conv2d(4, 6, 1), shape=PLANE)

    assert op_counts(program)["add"] == 1
