"""Activations that some format lacks are spelled by those that it has."""

import pytest
import torch.nn.functional as F

from cleanup_programs import cleaned, op_counts

CASES = {
    "log-sigmoid": (F.logsigmoid, {"neg": 2, "softplus": 1}),
    "threshold": (lambda x: F.threshold(x, 0.2, -0.7), {"gt": 1, "where": 1}),
    "hard-shrink": (lambda x: F.hardshrink(x, 0.4), {"abs": 1, "gt": 1, "where": 1}),
    "random-leaky-relu": (lambda x: F.rrelu(x, 0.1, 0.3), {"leaky_relu": 1}),
}


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", CASES)
def test_an_uncommon_activation_is_spelled_by_common_ones(name: str, dynamic: bool) -> None:
    function, ops = CASES[name]

    assert op_counts(cleaned(function, shape=(4, 6), dynamic=dynamic)) == ops
