"""What goes into a run: the model, the inputs that calibrate and judge it, and the metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from edgekit.data import Preprocessing, check_labels, check_range, open_data, peek
from edgekit.errors import LoweringError, UsageError
from edgekit.evaluate import Metric, choices, choose_metric, class_axis, has_classes
from edgekit.inputs import Inputs, from_data, from_model
from edgekit.load import Candidate, load_candidate
from edgekit.recipe import Recipe
from edgekit.shrink import asks_for_training
from edgekit.workdir import WorkDir
from edgekit_converters.program import Program
from edgekit_runtime.errors import ArtifactError
from edgekit_runtime.sound import Sound


def load(model: Any, data: Any, wish: Mapping[str, Any]) -> Candidate:
    """Read the model; where it does not tell its input shapes, the data does.

    Args:
        model: file, module or exported program.
        data: of the user, or None.
        wish: "factory", "trust" and "input_shapes" for `load_candidate`.

    Raises:
        UsageError: the model cannot be read.
        LoweringError: an input has no axis of samples in front.
    """
    candidate = _load(model, data, wish)
    for info in candidate.program.inputs:
        if info.shape[:1] != (1,):
            raise LoweringError(
                format="torch",
                op=f"input {info.name!r}",
                where="",
                why=f"its shape {info.shape} does not begin with a batch that can be one, so that samples "
                "cannot be told apart",
                way_out="Give every input the batch as first axis: wrap the model in a module that transposes "
                "inside, or export it with a batch of one.",
            )
    return candidate


def _load(model: Any, data: Any, wish: Mapping[str, Any]) -> Candidate:
    if wish.get("input_shapes") is not None or data is None:
        return load_candidate(model, **wish)
    try:
        return load_candidate(model, **wish)
    except UsageError as unknown:
        example = peek(data)
        if example is None or "--input-shape" not in str(unknown):
            raise
        return load_candidate(model, **wish, example=tuple(torch.from_numpy(x) for x in example))


def open_inputs(
    given: Any, recipe: Recipe, candidate: Candidate, work: WorkDir, *, training: bool | None = False
) -> Inputs:
    """The user's data, checked against the float model; or inputs distilled from the model.

    Args:
        given: data of the user, or None.
        recipe: preprocessing and sizes.
        candidate: the float model.
        work: where distilled inputs are kept.
        training: samples to train on are needed, too; None takes them where the data names some.

    Raises:
        UsageError: the data cannot be used, or there is none to train on.
    """
    program = candidate.program
    preprocessing = _preprocessing(recipe)
    if given is None and training:
        raise _nothing_to_train_on("there is no --data", recipe)
    if given is None:
        choose_metric(recipe.metric, labels=False, classes=False)  # one that needs labels is refused first
        return from_model(program, candidate.sha256, work, seed=recipe.seed)
    data = open_data(
        given,
        inputs=program.inputs,
        preprocessing=preprocessing,
        seed=recipe.seed,
        calibration_size=recipe.quantize.calibration_size,
        training=training,
    )
    if training and not data.n_training:
        raise _nothing_to_train_on(f"{named(given)}: there is one sample only", recipe)
    inputs = from_data(data, program)
    warning = check_range(program, next(iter(data.calibration(1))))
    return replace(inputs, notes=(*inputs.notes, warning)) if warning else inputs


def _preprocessing(recipe: Recipe) -> Preprocessing | None:
    """For images; what a device makes of samples is checked here, and done by whoever prepares the arrays.

    Raises:
        UsageError: the table has a key or a value that does not fit.
    """
    table = recipe.preprocessing
    if not table or table.keys() != {"sound"}:
        return Preprocessing.from_dict(table) if table else None
    try:
        Sound.from_manifest(table["sound"])
    except ArtifactError as error:
        raise UsageError(
            error.what, expected=error.expected, way_out="Correct [preprocessing.sound] in the recipe."
        ) from error
    return None


def _nothing_to_train_on(found: str, recipe: Recipe) -> UsageError:
    option = asks_for_training(recipe)
    pruned = option.startswith("--prune")
    way_out = "Give --epochs 0 to prune without training" if pruned else f"Leave {option} out"
    return UsageError(
        f"{found}, and {option} needs samples to train on",
        expected="train_x (train_y) or x (y) in an .npz, class folders, or module:callable; labels help, and are not "
        "needed",
        way_out=f"Give them with --data. {way_out}.",
    )


def metric_for(recipe: Recipe, inputs: Inputs, program: Program, *, where: str) -> Metric:
    """The metric that was asked for or suits the data; labels are checked against the number of classes."""
    with torch.no_grad():
        outputs = [y.numpy() for y in program.graph(*program.example)]
    classes = has_classes(outputs[0])
    metric = choose_metric(recipe.metric, labels=inputs.has_labels, classes=classes)
    if metric.needs_labels:
        counted = metric.name in {"top1", "f1"}
        per_input = choices(outputs[0]).size if counted else outputs[0].size
        axis = class_axis(outputs[0])
        seen = 0
        for arrays, labels in inputs.evaluation():
            assert labels is not None
            if labels.size != per_input * len(arrays[0]):
                raise UsageError(
                    f"{where}: labels of shape {labels.shape[1:]} for each input",
                    expected=f"{per_input} for each input, for --metric {metric.name}",
                    way_out="Give class numbers, not one-hot rows."
                    if counted
                    else "Give one value per output.",
                )
            if counted and axis is not None:
                name = partial(_counted_on, inputs, seen)
                check_labels(labels, outputs[0].shape[axis], f"{where}: evaluation labels", name)
            seen += len(arrays[0])
    return metric


def _counted_on(inputs: Inputs, before: int, index: int) -> str:
    return inputs.name(before + index)


def named(data: Any) -> str:
    """What to call the data in a message."""
    return str(data) if isinstance(data, (str, Path)) else "data"
