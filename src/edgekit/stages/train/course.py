"""What every training has in common: the original network at hand, what is learned from, and who judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edgekit.evaluate import Metric
from edgekit.inputs import Inputs, Training, batch_size, first, input_values, tensors
from edgekit.recipe import Train
from edgekit.stages.train.augment import Augment, augmentation
from edgekit.stages.train.device import device_for
from edgekit.stages.train.fit import Fitted, Objective, fit
from edgekit.stages.train.judging import Comparison, Judged, Run, compare, judge, judged_batches
from edgekit.stages.train.lessons import SAMPLES, lessons, runner
from edgekit.stages.train.losses import Reading
from edgekit.stages.train.readings import readings_of
from edgekit.stages.train.schedule import Schedule
from edgekit.stages.train.trainable import Trainable, trainable
from edgekit_converters.program import Program


@dataclass(frozen=True)
class Course:
    """Everything but the network that learns, and how.

    Attributes:
        guide: the original network, on the device.
        device: to train on.
        training: what is trained on.
        labels: its labels are learned from.
        samples: some calibration inputs, one tensor per input of the network.
        readings: how each output is read.
        augment: random changes of inputs that keep what they are; None where there are none.
        metric: by which epochs are judged.
        notes: sentences for the report.
    """

    guide: Trainable
    device: str
    training: Training
    labels: bool
    samples: tuple[Tensor, ...]
    readings: tuple[Reading, ...]
    augment: Augment | None
    metric: Metric
    notes: tuple[str, ...]
    _judged: Sequence[Judged]
    _size: int

    def compare(self, before: Run, after: Run) -> Comparison:
        """Judge two networks that map arrays to arrays."""
        return compare(self._judged, before, after, self.metric)

    def fit(
        self,
        network: nn.Module,
        objective: Objective,
        outputs: Callable[..., Sequence[Tensor]],
        schedule: Schedule,
        *,
        checkpoint: Path,
        step: Callable[[str], None],
        table: str,
    ) -> Fitted:
        """Train a network in place, or go on with a training that was interrupted.

        Args:
            network: on the device; it is left with the weights of the epoch that is judged best.
            objective: what is minimised.
            outputs: of (network, *inputs): those that are judged.
            schedule: how long and how fast.
            checkpoint: file that holds the state after every epoch.
            step: told of the progress.
            table: of the recipe that the learning rate stands in, for messages.

        Raises:
            UsageError: the loss stopped being a number, or memory ran out; the checkpoint is kept.
        """
        if schedule.channels_last:
            for module in (network, self.guide):
                module.to(memory_format=torch.channels_last)

        def judged(module: nn.Module) -> float:
            run = runner(lambda *x: outputs(module, *x), self.device, self._size)
            return judge(self._judged, run, self.metric)

        return fit(
            network,
            objective=objective,
            training=self.training,
            judge=judged,
            higher_is_better=self.metric.higher_is_better,
            schedule=schedule,
            checkpoint=checkpoint,
            step=step,
            augment=self.augment,
            metric=self.metric.name,
            table=table,
        )


def course_for(
    teacher: Program,
    taps: Sequence[str],
    inputs: Inputs,
    metric: Metric,
    settings: Train,
    *,
    taught: bool,
    way_out: str,
    device: str,
) -> Course:
    """Look at the original network and the data.

    Args:
        teacher: the original network.
        taps: names of its nodes to look at.
        inputs: with samples to train on, and to judge every epoch on.
        metric: that epochs are judged by.
        settings: `[train]` of the recipe.
        taught: its answers are learned from, so that labels are not needed.
        way_out: what to do where there are no samples to train on.
        device: "auto", "cpu" or "cuda".

    Raises:
        UsageError: there is nothing to train on or to learn from, or no such device.
    """
    place, size = device_for(device), batch_size(teacher)
    guide = trainable(teacher, taps, place)
    original = runner(lambda *x: guide(*x)[0], place, size)
    samples = first(SAMPLES, (tuple(t.numpy() for t in batch) for batch in inputs.calibration()))
    readings = readings_of(original(samples), metric)
    learned = lessons(inputs.training, settings, readings[0], original, taught=taught, way_out=way_out)
    # Labels of one class for each whole input stay true where an image moves.
    one_class = readings[0].kind != "values" and len(teacher.outputs[0].shape) == 2
    augment, moved = augmentation(
        settings.augment, teacher.inputs, samples, original, free=not learned.labels or one_class
    )
    return Course(
        guide,
        place,
        learned.training,
        learned.labels,
        tensors(samples),
        readings,
        augment,
        metric,
        (*learned.notes, *moved),
        judged_batches(inputs, values=input_values(teacher), size=size, run=original),
        size,
    )
