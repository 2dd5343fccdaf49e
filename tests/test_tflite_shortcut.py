"""Shortcuts that take every second pixel: inside the delegate, as a convolution of the same integers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.bench import tflite_ops
from edgekit.stages.quantize.apply import convert
from edgekit_converters.predict import SavedModel, open_saved
from edgekit_converters.program import QuantizedProgram
from edgekit_converters.reference import Reference
from edgekit_converters.tflite import export_tflite
from edgekit_converters.tflite.shortcut import MOST_CHANNELS, convolve_shortcuts
from edgekit_converters.tflite.unfold import unfold_weights
from quantized_programs import calibrated, noise, program, run

aten = torch.ops.aten
EMPTY = (0, 0, 0, 0, 1, 2)
WIDE = MOST_CHANNELS + 4


def taken_from(take: Callable[[Tensor], Tensor], channels: int = 5) -> QuantizedProgram:
    """A layer and what `take` makes of its output."""
    layer = nn.Conv2d(3, channels, 3, padding=1)
    made = program(lambda x, layer: take(torch.relu(layer(x))), layer, shape=(3, 7, 8))
    return convert(calibrated(made))


def convolved(quantized: QuantizedProgram) -> tuple[int, list[object]]:
    """The number of rewrites, and the ops after them, whose results must be the same to the last bit."""
    graph = unfold_weights(quantized.program.graph)
    count = convolve_shortcuts(graph)
    inputs = noise(quantized.program, 4, seed=1)
    with torch.no_grad():
        for a, b in zip(run(quantized.program, inputs), graph(*inputs), strict=True):
            assert torch.equal(a, b)
    return count, [n.target for n in graph.graph.nodes]


MOVES = {
    aten.slice.Tensor,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.constant_pad_nd.default,
}


@pytest.mark.parametrize(
    "take",
    [
        lambda x: F.pad(x[:, :, ::2, ::2], EMPTY),
        lambda x: F.pad(x, EMPTY)[:, :, ::2, ::2],
        lambda x: x[:, :, ::3, ::2],
        lambda x: x[..., ::2],
        lambda x: x[:, :, ::2, ::2][:, :, ::2],
        lambda x: F.max_pool2d(x, 1, 2),
        lambda x: F.avg_pool2d(x, 1, (2, 3)),
        lambda x: F.pad(F.avg_pool2d(x, 1, 2), EMPTY),
    ],
    ids=[
        "slice and pad",
        "pad and slice",
        "slice",
        "columns",
        "twice",
        "maximum",
        "average",
        "average and pad",
    ],
)
def test_a_shortcut_becomes_one_convolution(take: Callable[[Tensor], Tensor]) -> None:
    count, ops = convolved(taken_from(take))
    assert count == 1
    assert ops.count(aten.conv2d.default) == 2
    assert not MOVES & set(ops)


def test_of_many_channels_each_is_convolved_by_itself() -> None:
    count, ops = convolved(taken_from(lambda x: F.pad(x[:, :, ::2, ::2], EMPTY), WIDE))
    assert (count, ops.count(aten.conv2d.default)) == (1, 2)
    assert MOVES & set(ops) == {aten.constant_pad_nd.default}


@pytest.mark.parametrize(
    "take",
    [
        lambda x: x[:, :, 1::2],
        lambda x: x[:, :, :4:2],
        lambda x: x[:, ::2],
        lambda x: F.max_pool2d(x, (1, 2), 2),
        lambda x: F.max_pool2d(x, 2, 2),
        lambda x: F.pad(x, EMPTY),
    ],
    ids=["from the second", "to the fourth", "channels", "pairs", "four", "only channels"],
)
def test_what_is_no_shortcut_stays(take: Callable[[Tensor], Tensor]) -> None:
    count, ops = convolved(taken_from(take))
    assert count == 0
    assert MOVES & set(ops)


@pytest.mark.parametrize(
    "pad",
    [lambda x: F.pad(x, EMPTY, value=1.0), lambda x: F.pad(x, (0, 0, 1, 0, 1, 1))],
    ids=["ones", "rows"],
)
def test_another_pad_stays_behind_the_convolution(pad: Callable[[Tensor], Tensor]) -> None:
    count, ops = convolved(taken_from(lambda x: pad(x[:, :, ::2, ::2])))
    assert count == 1
    assert MOVES & set(ops) == {aten.constant_pad_nd.default}


def test_pixels_that_others_read_before_the_pad_are_taken_once() -> None:
    def take(x: Tensor) -> tuple[Tensor, Tensor]:
        taken = x[:, :, ::2, ::2]
        return F.pad(taken, EMPTY), taken.mean((2, 3))

    count, ops = convolved(taken_from(take))
    assert count == 1
    assert ops.count(aten.constant_pad_nd.default) == 1


def test_a_float_graph_stays() -> None:
    source = program(lambda x, conv: conv(x)[:, :, ::2, ::2], nn.Conv2d(3, 4, 1), shape=(3, 6, 6))
    assert convolve_shortcuts(source.graph) == 0


@pytest.mark.parametrize("channels", [6, WIDE])
def test_the_file_is_one_partition_and_gives_the_integers_of_the_reference(
    tmp_path: Path, channels: int
) -> None:
    first, second = nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 2 * channels, 3, 2, 1)
    half = channels // 2

    def forward(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        y = torch.relu(first(x))
        return torch.relu(second(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, half, half)))

    made = calibrated(program(forward, first, second, shape=(3, 8, 8)))
    quantized = convert(made, ties=[noise(made.program, 4)])
    export_tflite(quantized, tmp_path / "m.tflite")
    counted = tflite_ops(tmp_path / "m.tflite")
    assert (counted.partitions, sum(counted.outside.values())) == (1, 0)
    source = quantized.program
    saved = SavedModel("tflite", tmp_path / "m.tflite", source.inputs, source.outputs)
    inputs = noise(source, 8, seed=5)
    (wanted,) = Reference(quantized)(*inputs)
    (found,) = open_saved(saved)([x.numpy() for x in inputs])
    np.testing.assert_array_equal(found, wanted.numpy())
