"""`compress`: load → search(prune, train → clean → choose the grid → lower → prove → judge) → bundle.

Each stage takes what the one before it gave and reaches back to nothing. Stages whose results are files run through
`WorkDir`, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from edgekit.assembly import write_bundle
from edgekit.attempt import Task
from edgekit.bundle import Bundle, check_out
from edgekit.clock import Clock, Progress
from edgekit.errors import Interrupted, LoweringError, UsageError
from edgekit.intake import load, metric_for, named, open_inputs
from edgekit.interrupts import listening
from edgekit.load import Candidate
from edgekit.recipe import Recipe, for_targets
from edgekit.report import StageResult
from edgekit.shrink import asks_for_training
from edgekit.stages.train.guard import no_memory
from edgekit.trials import may_search, read_trial, rebuild, search
from edgekit.workdir import WorkDir


@dataclass(frozen=True)
class Request:
    """Everything that one compression is asked to do.

    Attributes:
        model: file, module or exported program.
        out: directory of the bundle.
        recipe: how.
        data: see `edgekit.data.open_data`; None distils calibration inputs from the model.
        factory: "module:callable" for a state dict.
        trust: allow unpickling.
        input_shapes: one per input, batch first, where the model does not tell.
        resume: go on from the finished stages of an interrupted run.
        from_trial: make this trial of the bundle at `out` again, instead of a search.
        command: for the provenance.
    """

    model: Any
    out: Path
    recipe: Recipe = field(default_factory=Recipe)
    data: Any = None
    factory: str | None = None
    trust: bool = False
    input_shapes: tuple[tuple[int, ...], ...] | None = None
    resume: bool = False
    from_trial: int | None = None
    command: str = "edgekit.compress"


def run(request: Request, progress: Progress = lambda _stage, _detail: None) -> Bundle:
    """Compress a model.

    Args:
        request: what to do.
        progress: told (stage, detail) whenever something starts.

    Returns:
        The bundle on disk; `report["accepted"]` says whether every budget and proof holds.

    Raises:
        UsageError: an input cannot be used.
        LoweringError: no format could be made.
        Interrupted: Ctrl-C; finished stages are kept for `resume`.
    """
    check_out(request.out)
    # The caller may be in the middle of a training: its random numbers are not ours to spend.
    with listening() as interrupted, torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.recipe.seed)

        at = ""

        def told(stage: str, detail: str) -> None:
            nonlocal at
            at = stage
            if interrupted():
                raise KeyboardInterrupt
            progress(stage, detail)

        try:
            return _run(request, told)
        except (KeyboardInterrupt, Exception) as stop:
            if no_memory(stop) and not interrupted():
                raise _no_room(stop, at) from stop
            if not (isinstance(stop, KeyboardInterrupt) or interrupted()):
                raise
            raise Interrupted(
                f"interrupted; finished stages are kept, `--resume` with the same options goes on ({request.out})"
            ) from stop


def _no_room(stop: BaseException, stage: str) -> UsageError:
    said = str(stop).splitlines()[0] if str(stop) else "MemoryError"
    return UsageError(
        f"memory ran out in the stage `{stage}`: {said}",
        expected="room for a batch, for its activations, and for the runtimes",
        way_out="Close other programs, or set a smaller batch_size in [train] of the recipe, and go on with --resume; "
        "finished stages are kept.",
    )


def _run(request: Request, progress: Progress) -> Bundle:
    clock = Clock(progress)
    with clock.stage("load") as notes:
        wish = {"factory": request.factory, "trust": request.trust, "input_shapes": request.input_shapes}
        candidate = load(request.model, request.data, wish)
        notes.extend(candidate.notes)
    with WorkDir(request.out, resume=request.resume) as work:
        bundle = _compress(request, candidate, work, clock)
        work.remove()
    return bundle


def _compress(request: Request, candidate: Candidate, work: WorkDir, clock: Clock) -> Bundle:
    recipe = for_targets(request.recipe)
    told = None if request.from_trial is None else read_trial(request.out, request.from_trial)
    asked = recipe if told is None else told.setting.applied(recipe)
    with clock.stage("data") as notes:
        inputs = open_inputs(request.data, asked, candidate, work, training=_training(asked, recipe))
        metric = metric_for(recipe, inputs, candidate.program, where=named(request.data))
        notes.extend(inputs.notes)
    begun = clock.results()
    task = Task(candidate, inputs, metric, work, clock)
    started = time.monotonic()
    try:
        found = search(task, recipe) if told is None else rebuild(task, recipe, told)
    except LoweringError:
        # Ctrl-C reaches converters and runtimes as well; what they say then is no reason to throw work away.
        clock.detail("")
        # With other options, hours of training may be of use yet; the rest is made again in no time.
        if not asks_for_training(asked):
            work.remove()
        raise
    if found.trials:
        seconds = round(time.monotonic() - started, 3)
        begun += (StageResult("search", seconds, notes=(f"{len(found.trials)} trials",)),)
    with clock.stage("bundle"):
        return write_bundle(request.out, request.command, candidate, inputs, metric, found, begun)


def _training(asked: Recipe, recipe: Recipe) -> bool | None:
    """Are samples to train on needed (True), welcome where the data names some (None), or of no use (False)?

    Args:
        asked: what is done first.
        recipe: of the user, by whose limits more may be tried.
    """
    if asks_for_training(asked):
        return True
    return None if may_search(recipe) else False
