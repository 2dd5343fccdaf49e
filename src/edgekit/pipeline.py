"""`compress`: load → prune, train → clean → choose the grid → lower three times → prove → judge → bundle.

Each stage takes what the one before it gave and reaches back to nothing. Stages whose results are files run through
`WorkDir`, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch

from edgekit.artifacts import timed_files, write_files
from edgekit.assembly import write_bundle
from edgekit.bundle import Bundle, check_out
from edgekit.clock import Clock, Progress
from edgekit.errors import Interrupted, LoweringError
from edgekit.evaluate import Metric
from edgekit.inputs import Inputs
from edgekit.intake import load, metric_for, named, open_inputs
from edgekit.judge import Judged, assess, prove, time_files, why_not
from edgekit.load import Candidate
from edgekit.lower import SUFFIX
from edgekit.recipe import Budget, Recipe
from edgekit.report import Baseline
from edgekit.shrink import Shrunk, needs_training, shrink
from edgekit.stages.quantize.choose import LADDER, STATIC, WEIGHTS, Settled, settle, settle_rung
from edgekit.workdir import WorkDir
from edgekit_converters.cleanup import clean
from edgekit_converters.program import Program
from edgekit_devices import load_profile

TIMING_SECONDS: Final = 10.0


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
    with _listening() as interrupted, torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.recipe.seed)

        def told(stage: str, detail: str) -> None:
            if interrupted():
                raise KeyboardInterrupt
            progress(stage, detail)

        try:
            return _run(request, told)
        except (KeyboardInterrupt, Exception) as stop:
            if not (isinstance(stop, KeyboardInterrupt) or interrupted()):
                raise
            raise Interrupted(
                f"interrupted; finished stages are kept, `--resume` with the same options goes on ({request.out})"
            ) from stop


@contextmanager
def _listening() -> Iterator[Callable[[], bool]]:
    """Tell whether Ctrl-C was pressed: native libraries swallow the exception, or make another one of it."""
    before, pressed = signal.getsignal(signal.SIGINT), False
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        before(number, frame)

    signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


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


@dataclass(frozen=True)
class _Job:
    """What the stages after the data have in common."""

    recipe: Recipe
    candidate: Candidate
    program: Program
    inputs: Inputs
    metric: Metric
    work: WorkDir
    clock: Clock


def _compress(request: Request, candidate: Candidate, work: WorkDir, clock: Clock) -> Bundle:
    recipe = _for_targets(request.recipe)
    with clock.stage("data") as notes:
        inputs = open_inputs(request.data, recipe, candidate, work, training=needs_training(recipe))
        metric = metric_for(recipe, inputs, candidate.program, where=named(request.data))
        # Tipping a borderline input is no loss by itself: for agreement, layers are kept float only when the user
        # named a limit.
        searched = recipe if metric.name == "agreement" else _with_drop(recipe, metric)
        notes.extend(inputs.notes)
    shrunk = shrink(candidate.program, candidate.sha256, inputs, recipe, metric, work, clock)
    with clock.stage("clean") as notes:
        program, changes = clean(shrunk.program)
        notes.extend(f"{c.name}: {c.rewrites}" for c in changes)
    with clock.stage("quantize") as notes:
        settled = settle(program, inputs, searched, metric, work, shrunk.key, step=clock.detail)
        notes.extend(settled.notes)
    recipe = _with_drop(recipe, metric)
    job = _Job(recipe, candidate, program, inputs, metric, work, clock)
    judged, failures = _climb(job, settled, searched)
    if not judged:
        work.remove()
        error, *others = failures
        for other in others:
            error.add_note(str(other))
        raise error
    with clock.stage("bundle"):
        return write_bundle(
            request.out,
            request.command,
            recipe,
            candidate,
            settled,
            inputs,
            judged,
            _baseline(candidate, shrunk, settled, metric, judged),
            tuple(failures),
            clock.results(),
        )


def _climb(job: _Job, settled: Settled, searched: Recipe) -> tuple[dict[str, Judged], list[LoweringError]]:
    """Lower to every format, and what is slower than float or loses too much again, by the next rung of the ladder."""
    judged, failures = _judge(job, settled, STATIC, job.recipe.formats)
    for rung in LADDER[1:]:
        again = [name for name, j in judged.items() if _wants(rung, j, job.recipe.budget)]
        if not again:
            continue
        with job.clock.stage("quantize"):
            settled = settle_rung(
                rung, settled, job.program, job.inputs, searched, job.work, step=job.clock.detail
            )
        if rung not in settled.variants:
            continue
        found, _ = _judge(job, settled, rung, again)
        judged |= {name: _better(judged[name], j, job) for name, j in found.items()}
    return {name: _told(j, j, job) if j.slower else j for name, j in judged.items()}, failures


def _wants(rung: str, judged: Judged, budget: Budget) -> bool:
    """A rung is for what is slower than float; the one without a grid for activations also for what loses too much."""
    return (judged.slower and not budget.allow_slower) or (rung == WEIGHTS and judged.lossy(budget))


def _judge(
    job: _Job, settled: Settled, rung: str, formats: Sequence[str]
) -> tuple[dict[str, Judged], list[LoweringError]]:
    """Lower one variant to some formats, prove every file, measure it, and time it beside its float twin."""
    variant, clock = settled.variants[rung], job.clock
    with clock.stage("lower"):
        files, failures = write_files(
            variant, formats, settled.key, job.candidate, job.recipe, job.work, step=clock.detail
        )
    with clock.stage("prove"):
        proofs = prove(variant.program, files, job.inputs.proof)
    with clock.stage("evaluate"):
        value, n, quality = assess(job.candidate.program, files, job.inputs, job.metric, step=clock.detail)
    with clock.stage("time"):
        latency = time_files(timed_files(files), max_seconds=TIMING_SECONDS)
    judged = {
        name: Judged(
            saved,
            variant,
            proofs[name],
            quality[name],
            latency.get(name),
            latency.get(f"{name} float"),
            (value, n),
        )
        for name, saved in files.items()
    }
    return judged, failures


def _baseline(
    candidate: Candidate, shrunk: Shrunk, settled: Settled, metric: Metric, judged: Mapping[str, Judged]
) -> Baseline:
    value, n = next(iter(judged.values())).baseline
    return Baseline(
        metric=metric.name,
        value=value,
        n=n,
        params=candidate.params,
        macs=shrunk.macs or sum(layer.macs for layer in settled.layers),
        size_bytes=4 * candidate.params,
        latency=next((j.float_latency for j in judged.values() if j.float_latency), None),
    )


def _better(before: Judged, after: Judged, job: _Job) -> Judged:
    """The better of two lowerings of one format, with a note of the other."""
    best, other = (after, before) if after.better_than(before, job.recipe.budget) else (before, after)
    return _told(replace(best, notes=before.notes), other, job)


def _told(judged: Judged, other: Judged, job: _Job) -> Judged:
    """With notes on what speaks against a lowering."""
    twin = other.saved.path.with_name(f"float{SUFFIX[other.saved.format]}")
    return replace(judged, notes=(*judged.notes, *why_not(other, twin, job.metric.name, job.recipe.budget)))


def _for_targets(recipe: Recipe) -> Recipe:
    """Narrow the weights when a target's integer kernels saturate."""
    if not any(load_profile(t).int8_saturates for t in recipe.targets):
        return recipe
    return replace(recipe, quantize=replace(recipe.quantize, weight_bits=7))


def _with_drop(recipe: Recipe, metric: Metric) -> Recipe:
    """Spell the default of `max_drop` out; it depends on what is measured."""
    if recipe.budget.max_drop is not None:
        return recipe
    return replace(recipe, budget=replace(recipe.budget, max_drop=metric.default_drop))
