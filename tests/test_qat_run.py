"""Training on the grid as a stage: what it wins back, what it keeps, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.digits import digit_inputs, digit_program, digits
from tests.support.tiny_training import inputs_of, training_of

import zoo
from edgekit.errors import UsageError
from edgekit.evaluate import METRICS, Metric
from edgekit.inputs import Inputs
from edgekit.load import load_candidate
from edgekit.recipe import Qat, Train
from edgekit.stages.qat import QatResult, qat
from edgekit.stages.quantize.apply import calibrate, convert, observe
from edgekit_converters.cleanup import clean
from edgekit_converters.parity import run_reference
from edgekit_converters.program import Program, QuantizedProgram

TOP1 = METRICS["top1"]
TRAIN = Train(batch_size=64, ema=0.9, augment="none")


@dataclass
class Distance:
    """Mean squared error of the first output, in units of the reference's variance."""

    error: float = 0.0
    size: float = 0.0

    def add(self, outputs: Sequence[Any], labels: Any, reference: Sequence[Any]) -> None:
        self.error += float(((outputs[0] - reference[0]) ** 2).sum())
        self.size += float((reference[0] ** 2).sum())

    def value(self) -> float:
        return self.error / self.size


DISTANCE = Metric("distance", Distance, higher_is_better=False, needs_labels=False)


@cache
def calibrated(bits: int) -> QuantizedProgram:
    observed = observe(digit_program(), weight_bits=bits)
    calibrate(observed, digit_inputs().calibration())
    return convert(observed)


def trained(
    path: Path,
    bits: int = 4,
    *,
    settings: Qat = Qat(epochs=3),  # noqa: B008 - frozen
    inputs: Inputs | None = None,
    metric: Metric = TOP1,
    train: Train = TRAIN,
    step: Any = lambda _: None,
) -> QatResult:
    program = digit_program()
    given = inputs or digit_inputs()
    return qat(
        calibrated(bits), program, program, given, metric, train, settings, seed=0, checkpoint=path, step=step
    )


def top1(program: Program | QuantizedProgram) -> float:
    _, _, x, y = digits()
    if isinstance(program, QuantizedProgram):
        (out,) = run_reference(program, (x,))
    else:
        with torch.no_grad():
            out = program.graph(torch.from_numpy(x))[0].numpy()
    return float((out.argmax(1) == y).mean())


def state(program: QuantizedProgram) -> list[bytes]:
    return [t.numpy().tobytes() for t in program.program.graph.state_dict().values()]


def test_most_of_what_four_bits_cost_is_won_back(tmp_path: Path) -> None:
    before = state(calibrated(4))
    result = trained(tmp_path / "c")
    whole, lost = top1(digit_program()), top1(digit_program()) - top1(calibrated(4))

    assert whole > 0.95
    assert lost > 0.03, "the network is too easy to tell anything"
    assert whole - top1(result.program) < lost / 2
    assert (result.before, result.after) == (top1(calibrated(4)), top1(result.program))
    assert state(calibrated(4)) == before
    assert result.program.weight_bits == 4
    assert [e.epoch for e in result.history] == [0, 1, 2, 3]


@pytest.mark.parametrize("learned_steps", [False, True])
def test_without_labels_the_outputs_come_closer_to_those_of_the_float_network(
    tmp_path: Path, learned_steps: bool
) -> None:
    x, _, eval_x, _ = digits()
    settings = Qat(epochs=4, learned_steps=learned_steps)
    inputs = inputs_of(x, None, eval_x, None)
    result = trained(tmp_path / "c", inputs=inputs, metric=DISTANCE, settings=settings)

    assert result.after < 0.5 * result.before


def test_scales_stay_unless_they_are_learned(tmp_path: Path) -> None:
    plain = trained(tmp_path / "a").program
    learned = trained(tmp_path / "b", settings=Qat(epochs=3, learned_steps=True)).program

    assert plain.program.graph.code == calibrated(4).program.graph.code
    assert (plain.input_grids, plain.output_grids) == (calibrated(4).input_grids, calibrated(4).output_grids)
    assert learned.output_grids != plain.output_grids


def test_a_training_that_improves_nothing_leaves_the_calibrated_program(tmp_path: Path) -> None:
    result = trained(tmp_path / "c", settings=Qat(epochs=1, learning_rate=1e-9))

    assert result.program is calibrated(4)
    assert result.before == result.after
    assert "kept" in result.notes[-1]


def test_an_error_counts_as_improved_when_it_falls(tmp_path: Path) -> None:
    harmful = Qat(epochs=1, learning_rate=1.0)
    result = trained(tmp_path / "c", 8, metric=DISTANCE, settings=harmful)

    assert result.program is calibrated(8)
    assert result.history[-1].value > result.before


def test_no_epochs_train_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Qat(epochs=-1)
    result = trained(tmp_path / "c", settings=Qat(epochs=1), train=replace(TRAIN, batch_size=4096))

    assert len(result.history) == 2


class Stopped(Exception):
    pass


def test_a_training_that_was_stopped_ends_with_the_same_bytes(tmp_path: Path) -> None:
    def stop(message: str) -> None:
        if message.startswith("epoch 2 of 3"):
            raise Stopped

    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped):
        trained(tmp_path / "c", step=stop)
    assert (tmp_path / "c").exists()
    resumed = trained(tmp_path / "c")

    assert state(resumed.program) == state(whole.program)
    assert repr(resumed.history) == repr(whole.history)


def test_training_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--qat"):
        trained(tmp_path / "c", inputs=digit_inputs(train=False))


def test_samples_that_are_not_numbers_end_the_training_and_keep_what_is_done(tmp_path: Path) -> None:
    x, y, eval_x, eval_y = digits()
    broken = x.copy()
    broken[len(x) // 2] = np.nan
    inputs = replace(inputs_of(x, y, eval_x, eval_y), training=training_of(broken, y))

    with pytest.raises(UsageError, match="epoch 1"):
        trained(tmp_path / "c", inputs=inputs)
    assert (tmp_path / "c").exists()


def test_progress_names_the_metric(tmp_path: Path) -> None:
    said: list[str] = []
    trained(tmp_path / "c", settings=Qat(epochs=1), step=said.append)

    assert any("epoch 1 of 1" in line and "top1" in line for line in said)


def test_recurrent_networks_with_float_compute_are_trained(tmp_path: Path) -> None:
    model = zoo.BY_NAME["gru"]
    (x,) = (t.numpy() for t in zoo.draw(model, 96))
    program = clean(load_candidate(zoo.build(model), example=zoo.draw(model, 1)).program)[0]
    inputs = inputs_of(x, None, x[:32], None)
    observed = observe(program, weight_bits=4)
    calibrate(observed, inputs.calibration())
    quantized = convert(observed)
    result = qat(
        quantized,
        program,
        program,
        inputs,
        DISTANCE,
        replace(TRAIN, batch_size=16),
        Qat(epochs=4, learning_rate=0.01),
        seed=0,
        checkpoint=tmp_path / "c",
        step=lambda _: None,
    )

    assert result.after < 0.7 * result.before
    assert result.program.kept_float == quantized.kept_float
