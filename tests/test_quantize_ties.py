"""Scales of sums that keep clear of rounding ties."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from edgekit.load import load_candidate
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit.stages.quantize.ties import LARGEST_NUDGE, best_scale
from edgekit_converters.cleanup import clean

qd = torch.ops.quantized_decomposed


def near(counts: np.ndarray, operands: tuple[tuple[float, int], ...], scale: float, margin: float) -> float:
    """Share of the sums within `margin` steps of a tie."""
    rows, columns = np.nonzero(counts)
    (sa, za), (sb, zb) = operands
    steps = (sa * (rows - 128.0 - za) + sb * (columns - 128.0 - zb)) / scale
    close = np.abs(steps - np.floor(steps) - 0.5) < margin
    return float(counts[rows, columns][close].sum() / counts.sum())


def counts_of(pairs: list[tuple[int, int]]) -> np.ndarray:
    counts = np.zeros((256, 256))
    for a, b in pairs:
        counts[a + 128, b + 128] += 1
    return counts


def test_a_sum_on_a_tie_is_moved_off_it() -> None:
    operands = ((0.5, 0), (0.25, 0))
    counts = counts_of([(1, 0), (3, 0), (5, 0), (7, 0)])
    assert near(counts, operands, 1.0, 1e-4) == 1.0

    scale = best_scale(counts, operands, 1.0, 1.0)

    assert scale < 1.0
    assert near(counts, operands, scale, 1e-4) == 0.0


def test_sums_clear_of_ties_keep_their_scale() -> None:
    counts = counts_of([(10, 0), (20, 0)])

    assert best_scale(counts, ((1.0, 0), (1.0, 0)), 1.0, 1.0) == 1.0


@given(
    st.lists(st.tuples(st.integers(-128, 127), st.integers(-128, 127)), min_size=1, max_size=40),
    st.floats(1e-4, 10),
    st.floats(1e-4, 10),
    st.floats(1e-3, 10),
)
def test_the_scale_never_grows_and_never_clips_half_a_step(
    pairs: list[tuple[int, int]], sa: float, sb: float, scale: float
) -> None:
    given_scale = float(np.float32(scale))

    found = best_scale(counts_of(pairs), ((sa, 3), (sb, -7)), 1.0, given_scale)

    assert given_scale * (1 - LARGEST_NUDGE) * (1 - 1e-6) <= found <= given_scale
    assert np.float32(found) == found


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2"])
def test_every_tensor_of_a_group_keeps_one_scale(name: str) -> None:
    model = zoo.BY_NAME[name]
    inputs = zoo.draw(model, 8, seed=3)
    program, _ = clean(load_candidate(zoo.build(model), example=tuple(x[:1] for x in inputs)).program)
    observed = observe(program)
    calibrate(observed, [inputs])

    graph = convert(observed, ties=[inputs]).program.graph

    pairs = [n for n in graph.graph.nodes if n.target is qd.quantize_per_tensor.default]
    assert pairs
    assert all(reader.args[1:3] == n.args[1:3] for n in pairs for reader in n.users)
    plain = convert(observed).program.graph
    before = [n.args[1] for n in plain.graph.nodes if n.target is qd.quantize_per_tensor.default]
    after = [n.args[1] for n in pairs]
    assert before != after
    assert np.allclose(before, after, rtol=LARGEST_NUDGE * 1.01)
