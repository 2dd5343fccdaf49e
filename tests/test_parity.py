"""The proof: distances in steps, and what rounding ties may do."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cleanup_programs import cleaned
from edgekit.stages.quantize.apply import convert
from edgekit_converters.parity import (
    MAX_STEPS,
    P999_STEPS,
    Bound,
    Proof,
    distances,
    measure,
    output_steps,
    p999,
    run_reference,
    tie_bound,
)
from edgekit_converters.program import QuantizedProgram
from quantized_programs import calibrated, noise, program


def net() -> QuantizedProgram:
    """conv → relu → conv → mean → linear, calibrated on noise."""
    conv, second, head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
    return convert(
        calibrated(
            program(
                lambda x, *_: head(torch.relu(second(torch.relu(conv(x)))).mean((2, 3))), conv, second, head,
                shape=(3, 8, 8),
            )
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> QuantizedProgram:
    return net()


def proof_inputs(quantized: QuantizedProgram, n: int = 24) -> list[np.ndarray]:
    return [x.numpy() for x in noise(quantized.program, n, seed=9)]


def test_distances_count_steps_of_each_output() -> None:
    a, b = np.array([[0.0, 1.0]], np.float32), np.array([[3.0]], np.float32)
    first, second = distances([a + 0.5, b], [a, b - 1], (0.25, 2.0))
    assert first.tolist() == [[2.0, 2.0]]
    assert second.tolist() == [[0.5]]


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (3,), (0, 3)])
def test_another_shape_is_infinitely_far(shape: tuple[int, ...]) -> None:
    (found,) = distances([np.zeros(shape, np.float32)], [np.zeros((1, 3), np.float32)], (1.0,))
    assert np.isinf(found).all()
    assert found.size == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_far(bad: float) -> None:
    y, r = np.array([[0.0, bad]], np.float32), np.zeros((1, 2), np.float32)
    for pair in ((y, r), (r, y)):
        (found,) = distances([pair[0]], [pair[1]], (1.0,))
        assert found.tolist() == [[0.0, np.inf]]


def test_two_infinities_or_two_nans_prove_nothing() -> None:
    y = np.array([[np.nan, np.inf]], np.float32)
    (found,) = distances([y], [y], (1.0,))
    assert np.isinf(found).all()


def test_integers_are_compared_as_numbers() -> None:
    (found,) = distances([np.array([[3]], np.int32)], [np.array([[5]], np.int64)], (1.0,))
    assert found.tolist() == [[2.0]]


@given(st.integers(1, 5000), st.integers(0, 20))
def test_at_least_999_of_1000_values_keep_to_the_percentile(n: int, far: int) -> None:
    values = np.zeros(n)
    values[: min(far, n)] = 7.0
    found = p999(values)
    assert (values <= found).mean() >= 0.999
    assert found in (0.0, 7.0)
    assert found == (7.0 if min(far, n) > n * 0.001 else 0.0)


@pytest.mark.parametrize(
    ("most", "tail", "holds"),
    [
        (2.0, 1.0, True),
        (2.001, 1.0, False),
        (1.0, 1.001, False),
        (np.inf, np.inf, False),
        (np.nan, 0.0, False),
    ],
)
def test_a_proof_holds_within_both_bounds_only(most: float, tail: float, holds: bool) -> None:
    assert Proof("ONNX Runtime", 1, most, tail, 1.0).holds is holds


def test_the_reference_proves_itself(plain: QuantizedProgram) -> None:
    inputs = proof_inputs(plain)
    reference = run_reference(plain, inputs)
    proof = measure(
        "onnx", lambda x: run_reference(plain, x), inputs, reference, output_steps(plain, reference), Bound()
    )
    assert (proof.max_steps, proof.p999_steps, proof.equal, proof.n) == (0.0, 0.0, 1.0, 24)
    assert proof.reference == "ONNX Runtime"
    assert proof.holds


@pytest.mark.parametrize("steps", [1, 3])
def test_a_file_some_steps_off_is_counted_in_steps(plain: QuantizedProgram, steps: int) -> None:
    inputs = proof_inputs(plain)
    reference = run_reference(plain, inputs)
    step = output_steps(plain, reference)
    proof = measure(
        "tflite", lambda x: tuple(y + steps * s for y, s in zip(reference, step, strict=True)), inputs,
        reference, step, Bound(),
    )  # fmt: skip
    assert proof.max_steps == pytest.approx(steps, abs=1e-3)
    assert proof.equal == 0.0
    assert proof.holds == (steps <= P999_STEPS)


def test_a_step_of_an_output_on_the_grid_is_its_scale(plain: QuantizedProgram) -> None:
    reference = run_reference(plain, proof_inputs(plain))
    assert output_steps(plain, reference) == (plain.output_grids[0].scale,)
    # And every reference value lies on that grid.
    grid = plain.output_grids[0]
    q = reference[0] / grid.scale + grid.zero_point
    assert np.abs(q - np.rint(q)).max() < 1e-3


@pytest.mark.parametrize(
    ("y", "step"), [([[0.0, 510.0]], 2.0), ([[4.0, 4.0]], 1.0), ([], 1.0)], ids=["range", "constant", "empty"]
)
def test_an_output_that_stays_float_is_counted_in_255ths_of_its_range(
    plain: QuantizedProgram, y: list[object], step: float
) -> None:
    from dataclasses import replace

    floating = replace(plain, output_grids=(None,))
    assert output_steps(floating, [np.array(y, np.float32)]) == (step,)


def test_rounding_ties_do_next_to_nothing_to_a_plain_network(plain: QuantizedProgram) -> None:
    inputs = proof_inputs(plain, 128)
    reference = run_reference(plain, inputs)
    bound = tie_bound(plain, inputs, reference)
    assert bound.max_steps == MAX_STEPS
    assert bound.p999_steps <= 2 * P999_STEPS
    assert tie_bound(plain, inputs, reference) == bound


def test_ties_that_a_network_amplifies_are_allowed_and_no_more() -> None:
    """The difference of two large values: one step of theirs is many of the result's."""
    generator = torch.Generator().manual_seed(0)
    first, second = nn.Conv2d(1, 4, 1), nn.Conv2d(1, 4, 1)
    for layer in (first, second):
        nn.init.uniform_(layer.weight, -1.0, 1.0, generator=generator)
        nn.init.constant_(layer.bias, 50.0)
    quantized = convert(
        calibrated(
            cleaned(lambda x, a, b: a(x) - b(x), first, second, shape=(1, 4, 4), dynamic=True),
        )
    )
    inputs = proof_inputs(quantized, 64)
    reference = run_reference(quantized, inputs)
    bound = tie_bound(quantized, inputs, reference)
    assert MAX_STEPS < bound.max_steps < 256
    assert bound.p999_steps <= bound.max_steps


def test_a_program_of_batch_one_is_run_one_by_one() -> None:
    conv = nn.Conv2d(3, 4, 3)
    fixed = convert(calibrated(cleaned(lambda x, *_: torch.relu(conv(x)), conv, shape=(3, 6, 6)), samples=1))
    assert not fixed.program.dynamic_batch
    (found,) = run_reference(fixed, proof_inputs(fixed, 5))
    assert found.shape == (5, 4, 4, 4)
