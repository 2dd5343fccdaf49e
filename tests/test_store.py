"""Programs on disk: what comes back computes the same, on the same grids, under the same names."""

import contextlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo
from cleanup_programs import cleaned
from edgekit.stages.quantize.apply import convert
from edgekit_converters.program import Program, QuantizedProgram
from edgekit_converters.store import load_program, quiet_torch, save_program
from quantized_programs import calibrated, noise, program, run, zoo_observed, zoo_program


def small(*, weight_bits: int = 8) -> QuantizedProgram:
    conv, head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
    source = program(
        lambda x, conv, head: head(torch.relu(conv(x)).mean((2, 3))), conv, head, shape=(3, 8, 8)
    )
    return convert(calibrated(source, weight_bits=weight_bits))


def test_a_float_program_comes_back_with_its_names_and_its_function(tmp_path: Path) -> None:
    source = zoo_program("two_streams")
    save_program(source, tmp_path / "p.pt2")
    found = load_program(tmp_path / "p.pt2")
    assert isinstance(found, Program)
    assert (found.inputs, found.outputs, found.dynamic_batch) == (source.inputs, source.outputs, True)
    inputs = zoo.draw(zoo.BY_NAME["two_streams"], 5)
    for a, b in zip(run(source, inputs), run(found, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [7, 8])
def test_a_quantized_program_comes_back_bit_for_bit(tmp_path: Path, bits: int) -> None:
    source = replace(small(weight_bits=bits), kept_float={"softmax": "größer als nötig"})
    save_program(source, tmp_path / "q.pt2")
    found = load_program(tmp_path / "q.pt2")
    assert isinstance(found, QuantizedProgram)
    assert (found.input_grids, found.output_grids) == (source.input_grids, source.output_grids)
    assert found.input_grids[0] is not None
    assert (found.kept_float, found.weight_bits) == (source.kept_float, bits)
    for n in (1, 2, 7):
        inputs = noise(source.program, n, seed=n)
        (a,), (b,) = run(source.program, inputs), run(found.program, inputs)
        assert torch.equal(a, b)
        assert a.shape == (n, 5)


def test_an_input_of_indices_has_no_grid_before_or_after(tmp_path: Path) -> None:
    source = convert(zoo_observed("text_transformer"))
    save_program(source, tmp_path / "q.pt2")
    found = load_program(tmp_path / "q.pt2")
    assert found.input_grids == (None, None)
    assert [i.dtype for i in found.program.inputs] == ["int64", "int64"]
    inputs = zoo.draw(zoo.BY_NAME["text_transformer"], 3)
    for a, b in zip(run(source.program, inputs), run(found.program, inputs), strict=True):
        assert torch.equal(a, b)


def test_a_batch_that_is_not_free_stays_so(tmp_path: Path) -> None:
    conv = nn.Conv2d(3, 4, 3)
    source = cleaned(lambda x, conv: conv(x), conv, shape=(3, 6, 6))
    save_program(source, tmp_path / "p.pt2")
    found = load_program(tmp_path / "p.pt2")
    assert not found.dynamic_batch
    assert found.inputs[0].shape == (1, 3, 6, 6)


def test_saving_neither_changes_the_program_nor_the_next_file(tmp_path: Path) -> None:
    source = small()
    inputs = noise(source.program, 3)
    (before,) = run(source.program, inputs)
    for name in ("a", "b"):
        save_program(source, tmp_path / name)
    (after,) = run(source.program, inputs)
    assert torch.equal(before, after)
    found = [load_program(tmp_path / name) for name in ("a", "b")]
    assert str(found[0].program.graph.code) == str(found[1].program.graph.code)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_torn_archive_is_an_error_not_a_program(tmp_path: Path, keep: float) -> None:
    save_program(small(), tmp_path / "q.pt2")
    whole = (tmp_path / "q.pt2").read_bytes()
    (tmp_path / "q.pt2").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises((RuntimeError, ValueError, zipfile.BadZipFile)):
        load_program(tmp_path / "q.pt2")


def test_no_room_is_an_error_of_the_system_and_not_the_end_of_the_process() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_program(small(), full)


def test_quiet_gives_the_loggers_back_as_they_were() -> None:
    import logging

    logger = logging.getLogger("torch.onnx")
    was = logger.disabled
    with quiet_torch():
        assert logger.disabled
    assert logger.disabled == was
    with contextlib.suppress(ZeroDivisionError), quiet_torch():
        _ = 1 / 0
    assert logger.disabled == was
