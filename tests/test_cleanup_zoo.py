"""Every architecture goes through the clean-up with one batch size and with a free one."""

import pytest
import torch

import zoo
from cleanup_programs import program_of
from edgekit_converters.cleanup import clean

CASES = [
    *(pytest.param(model, True, id=f"{model.name}-dynamic") for model in zoo.ZOO),
    *(pytest.param(model, False, id=f"{model.name}-static") for model in zoo.ASKED[::2]),
]


@pytest.mark.parametrize(("model", "dynamic"), CASES)
def test_an_architecture_keeps_its_outputs(model: zoo.ZooModel, dynamic: bool) -> None:
    module = zoo.build(model)
    program = program_of(module, zoo.draw(model, 1), dynamic=dynamic)

    cleaned, _ = clean(program)

    batch = zoo.draw(model, 2 if dynamic else 1, seed=5)
    with torch.no_grad():
        for want, got in zip(program.graph(*batch), cleaned.graph(*batch), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
