"""Every architecture goes through the clean-up with one batch size and with a free one."""

import pytest
import torch

import zoo
from cleanup_programs import program_of
from edgekit_converters.cleanup import clean


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("model", zoo.ZOO, ids=lambda model: model.name)
def test_an_architecture_keeps_its_outputs(model: zoo.ZooModel, dynamic: bool) -> None:
    module = zoo.build(model)
    program = program_of(module, zoo.draw(model, 1), dynamic=dynamic)

    cleaned, _ = clean(program)

    batch = zoo.draw(model, 2 if dynamic else 1, seed=5)
    with torch.no_grad():
        for want, got in zip(program.graph(*batch), cleaned.graph(*batch), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
