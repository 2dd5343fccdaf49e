"""Powers become products and roots."""

import pytest
import torch

from cleanup_programs import cleaned, op_counts


@pytest.mark.parametrize(
    ("exponent", "ops"),
    [
        (2, {"mul": 1}),
        (3, {"mul": 2}),
        (4.0, {"mul": 2}),
        (0.5, {"sqrt": 1}),
        (-0.5, {"rsqrt": 1}),
        (-1, {"reciprocal": 1}),
    ],
)
def test_a_small_exponent_is_a_product_or_a_root(exponent: float, ops: dict[str, int]) -> None:
    program = cleaned(lambda x: x.exp() ** exponent, shape=(5,))

    assert op_counts(program) == {"exp": 1, **ops}


def test_a_square_is_a_product() -> None:
    assert op_counts(cleaned(torch.square, shape=(5,))) == {"mul": 1}


@pytest.mark.parametrize("exponent", [1.7, 5, 0])
def test_other_exponents_stay(exponent: float) -> None:
    assert op_counts(cleaned(lambda x: x.exp() ** exponent, shape=(5,)))["mul"] == 0
