"""One attempt: a network made smaller, on the grid, in every format, proven and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch

from edgekit.artifacts import timed_files, write_files
from edgekit.bench import LatencyStats
from edgekit.bundle import digest
from edgekit.clock import Clock
from edgekit.errors import LoweringError
from edgekit.evaluate import Metric
from edgekit.inputs import Inputs, tensors
from edgekit.judge import Judged, assess, estimates, prove, time_files, why_not
from edgekit.load import Candidate
from edgekit.lower import SUFFIX
from edgekit.recipe import Recipe
from edgekit.report import StageResult
from edgekit.shrink import Shrunk, shrink
from edgekit.stages.qat.stage import train_settled
from edgekit.stages.quantize.choose import settle
from edgekit.stages.quantize.rungs import DYNAMIC, LADDER, STATIC, WEIGHTS, Settled, ladder, settle_rung
from edgekit.workdir import Facts, WorkDir, stage_key
from edgekit_converters.cleanup import clean
from edgekit_converters.program import Program

TIMING_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Task:
    """What all attempts at a model have in common.

    Attributes:
        candidate: the model.
        inputs: to calibrate, train, prove and judge with.
        metric: that files are judged by.
        work: finished stages.
        clock: of the run.
    """

    candidate: Candidate
    inputs: Inputs
    metric: Metric
    work: WorkDir
    clock: Clock


@dataclass(frozen=True)
class Attempt:
    """What one recipe came to.

    Attributes:
        recipe: with its limits spelt out.
        shrunk: the network that was quantized.
        settled: the grid.
        judged: format to file.
        failures: formats that could not be lowered.
        stages: that ran for it.
        float_drop: what the network lost of the metric before it was quantized.
    """

    recipe: Recipe
    shrunk: Shrunk
    settled: Settled
    judged: Mapping[str, Judged]
    failures: tuple[LoweringError, ...]
    stages: tuple[StageResult, ...]
    float_drop: float = 0.0


def attempt(task: Task, recipe: Recipe, *, islands: bool = True) -> Attempt:
    """Do what a recipe says.

    Args:
        task: the model and its data.
        recipe: what to do.
        islands: keep layers float where the grid alone loses more than the budget allows.

    Raises:
        UsageError: the recipe asks for what the data or the network cannot give.
    """
    candidate, inputs, metric, work, clock = (
        task.candidate,
        task.inputs,
        task.metric,
        task.work,
        task.clock,
    )
    begun = len(clock.results())
    shrunk = shrink(candidate.program, candidate.sha256, inputs, recipe, metric, work, clock)
    with clock.stage("clean") as notes:
        program, changes = clean(shrunk.program)
        notes.extend(f"{c.name}: {c.rewrites}" for c in changes)
    with clock.stage("quantize") as notes:
        searched = _searched(recipe, metric, islands=islands)
        settled = settle(program, inputs, searched, metric, work, shrunk.key, step=clock.detail)
        notes.extend(settled.notes)
    if recipe.qat.enabled is True:
        with clock.stage("qat") as notes:
            settled = train_settled(
                settled, program, candidate.program, inputs, metric, recipe, work, step=clock.detail
            )
            notes.extend(settled.notes)
    lost = _lost(task, shrunk)
    job = _Job(task, with_drop(recipe, metric), program, searched, lost)
    judged, failures = _climb(job, settled)
    return Attempt(job.recipe, shrunk, settled, judged, tuple(failures), clock.results()[begun:], lost)


def with_drop(recipe: Recipe, metric: Metric) -> Recipe:
    """Spell the default of `max_drop` out; it depends on what is measured."""
    if recipe.budget.max_drop is not None:
        return recipe
    return replace(recipe, budget=replace(recipe.budget, max_drop=metric.default_drop))


def _lost(task: Task, shrunk: Shrunk) -> float:
    """What pruning and training cost of the metric, before any grid: no calibration brings that back."""
    if shrunk.program is task.candidate.program:
        return 0.0

    def make(_: Path) -> Facts:
        before, after = task.metric.make(), task.metric.make()
        for arrays, labels in task.inputs.evaluation():
            with torch.no_grad():
                given, left = (
                    tuple(y.numpy() for y in program.graph(*tensors(arrays)))
                    for program in (task.candidate.program, shrunk.program)
                )
            before.add(given, labels, given)
            after.add(left, labels, given)
        return {"drop": float(task.metric.drop(before.value(), after.value()))}

    def read(_: Path, facts: Facts) -> float:
        return float(facts["drop"])

    key = stage_key("float", shrunk.key, task.inputs.sha256, task.metric.name)
    with task.clock.stage("evaluate"):
        return task.work.stage("float", key, make, read)


def _searched(recipe: Recipe, metric: Metric, *, islands: bool) -> Recipe:
    """The recipe that the grid is chosen by; without a limit to the drop, no layer is kept float for it.

    Tipping a borderline input is no loss by itself: for agreement, only a limit that the user named counts.
    """
    if not islands:
        return replace(recipe, budget=replace(recipe.budget, max_drop=None))
    return recipe if metric.name == "agreement" else with_drop(recipe, metric)


@dataclass(frozen=True)
class _Job:
    """What the rungs of the ladder have in common; `lost` is what the network lost before any of them."""

    task: Task
    recipe: Recipe
    program: Program
    searched: Recipe
    lost: float

    def wants(self, rung: str, judged: Judged) -> bool:
        """A rung is for what is slower than float.

        Those without a fixed grid for activations are also for what loses too much on it, but not before it; the first
        of them, whose layers are as fast as on a fixed grid, also for what takes longer than the user allows.
        """
        if rung not in ladder(self.recipe.quantize.activations, judged.saved.format):
            return False
        budget = self.recipe.budget
        if (judged.slower and not budget.allow_slower) or (rung == DYNAMIC and judged.slow(budget)):
            return True
        held = budget.max_drop is None or self.lost <= budget.max_drop
        return rung in {DYNAMIC, WEIGHTS} and held and judged.lossy(budget)


def _climb(job: _Job, settled: Settled) -> tuple[dict[str, Judged], list[LoweringError]]:
    """Lower to every format, and what is slower than float or loses too much again, by the next rung of the ladder."""
    task, activations = job.task, job.recipe.quantize.activations
    judged: dict[str, Judged] = {}
    failures: list[LoweringError] = []
    for rung in LADDER:
        first = [name for name in job.recipe.formats if ladder(activations, name)[0] == rung]
        again = [name for name, j in judged.items() if job.wants(rung, j)]
        if not (first or again):
            continue
        if rung != STATIC:
            with task.clock.stage("quantize"):
                settled = settle_rung(
                    rung, settled, job.program, task.inputs, job.searched, task.work, step=task.clock.detail
                )
        if rung not in settled.variants:
            continue
        found, refused = _judge(job, settled, rung, [*first, *again])
        failures += [error for error in refused if error.format in first]
        judged |= {name: _better(judged[name], j, job) if name in judged else j for name, j in found.items()}
    return {name: _told(j, j, job) if j.slower else j for name, j in judged.items()}, failures


def _judge(
    job: _Job, settled: Settled, rung: str, formats: Sequence[str]
) -> tuple[dict[str, Judged], list[LoweringError]]:
    """Lower one variant to some formats, prove every file, measure it, and time it beside its float twin."""
    task, variant, clock = job.task, settled.variants[rung], job.task.clock
    with clock.stage("lower"):
        files, failures = write_files(
            variant, formats, settled.key, task.candidate, job.recipe, task.work, step=clock.detail
        )
    with clock.stage("prove"):
        proofs = prove(variant.program, files, task.inputs.proof)
    with clock.stage("evaluate"):
        value, n, quality = assess(task.candidate.program, files, task.inputs, task.metric, step=clock.detail)
    with clock.stage("time"):
        latency = _timed(timed_files(files), task.work)
    judged: dict[str, Judged] = {}
    for name, saved in files.items():
        predicted, notes = estimates(saved, job.recipe.targets)
        judged[name] = Judged(
            saved,
            variant,
            proofs[name],
            quality[name],
            latency.get(name),
            latency.get(f"{name} float"),
            (value, n),
            notes,
            predicted,
        )
    return judged, failures


def _timed(files: Mapping[str, Path], work: WorkDir) -> dict[str, LatencyStats]:
    """Latencies of files, kept for a resume: what was decided by them before an interrupt is decided alike after it."""

    def make(_: Path) -> Facts:
        return {name: asdict(found) for name, found in time_files(files, max_seconds=TIMING_SECONDS).items()}

    def read(_: Path, facts: Facts) -> dict[str, LatencyStats]:
        return {name: LatencyStats(**facts[name]) for name in files}

    key = stage_key("time", {name: digest(path).sha256 for name, path in files.items()})
    return work.stage("time", key, make, read)


def _better(before: Judged, after: Judged, job: _Job) -> Judged:
    """The better of two lowerings of one format, with a note of the other; one that is not proven is no better."""
    proven = after.proof.holds or not before.proof.holds
    better = proven and after.better_than(before, job.recipe.budget)
    best, other = (after, before) if better else (before, after)
    return _told(replace(best, notes=before.notes), other, job)


def _told(judged: Judged, other: Judged, job: _Job) -> Judged:
    """With notes on what speaks against a lowering."""
    twin = other.saved.path.with_name(f"float{SUFFIX[other.saved.format]}")
    why = why_not(other, twin, job.task.metric.name, job.recipe.budget)
    return replace(judged, notes=(*judged.notes, *why))
