"""Searches for a setting that holds the budget: runs attempts until all limits hold or nothing is left to try."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from edgekit.attempt import Attempt, Task, attempt
from edgekit.bundle import digest
from edgekit.errors import LoweringError, UsageError
from edgekit.judge import Judged
from edgekit.recipe import Recipe
from edgekit.search import (
    Calibration,
    Capabilities,
    Island,
    Measured,
    Outcome,
    Setting,
    Trial,
    capabilities,
    chosen,
    damage_of,
    nearest_miss,
    next_setting,
    open_store,
    pareto,
    trial_table,
)
from edgekit.search.capabilities import HEAVIEST
from edgekit.search.limits import missed
from edgekit.versions import versions
from edgekit.workdir import stage_key

# `attempt`, or what stands for it.
Make: TypeAlias = Callable[..., Attempt]

# What one more conversion to float and back costs beside the layer itself, as a share of it.
CONVERSION: Final = 0.25


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        attempt: to ship: the chosen one, or the nearest miss.
        trials: rows for the report; empty where nothing was searched.
        number: of the trial that `attempt` is.
        miss: sentences on what binds; empty where the budget holds.
    """

    attempt: Attempt
    trials: tuple[Mapping[str, Any], ...] = ()
    number: int | None = None
    miss: tuple[str, ...] = ()


def may_search(recipe: Recipe) -> bool:
    """Did the user name a limit that can be searched for?"""
    limits = (recipe.budget.max_drop, recipe.budget.max_latency_ms, recipe.budget.max_size_mb)
    return recipe.search.trials > 1 and any(limit is not None for limit in limits)


@dataclass(frozen=True)
class Told:
    """A trial as the report of its search tells it.

    Attributes:
        setting: what it does.
        number: of the trial.
        trials: rows of all trials of that search.
    """

    setting: Setting
    number: int
    trials: tuple[Mapping[str, Any], ...]


def search(task: Task, recipe: Recipe, make: Make = attempt) -> Found:
    """Attempt what the recipe says and, where that misses a limit that the user named, other settings.

    Args:
        task: the model and its data.
        recipe: of the user.
        make: makes an attempt at a recipe.

    Raises:
        UsageError: the first attempt cannot be made, or the trials cannot be kept.
        LoweringError: no format can be written.
    """
    began = time.monotonic()
    first = make(task, recipe)
    _in_some_format(first)
    outcome = outcome_of(first, time.monotonic() - began)
    start = _setting(first)
    if not may_search(recipe) or outcome.refused or not missed(outcome, first.recipe.budget):
        return Found(first)
    return _Search(task, recipe, first, outcome, start, make).run()


def read_trial(out: Path, number: int) -> Told:
    """Find a trial in the report of a bundle.

    Raises:
        UsageError: there is no such bundle or trial.
    """
    path = out / "report.json"
    try:
        rows = tuple(json.loads(path.read_text(encoding="utf-8")).get("trials") or ())
        settings = {int(row["number"]): row["setting"] for row in rows}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"no report of ours ({error})"
        raise UsageError(
            f"--from-trial {number}: {path}: {why}",
            expected="the bundle of a search at the output",
            way_out="Name it with -o, or run the search first: give a limit such as --max-latency-ms.",
        ) from error
    if number in settings:
        return Told(Setting.from_dict(settings[number]), number, rows)
    known = ", ".join(map(str, settings)) or "none: nothing was searched for it"
    raise UsageError(
        f"--from-trial {number}: {path} has no such trial",
        expected=f"one of its trials ({known})",
        way_out="report.html shows what each trial came to.",
    )


def rebuild(task: Task, recipe: Recipe, told: Told, make: Make = attempt) -> Found:
    """Make one trial again; the others stay in the report."""
    made = make(task, told.setting.applied(recipe), islands=False)
    _in_some_format(made)
    return Found(made, told.trials, told.number)


def _in_some_format(made: Attempt) -> None:
    """Raise what stood in the way where no format could be written."""
    if made.judged:
        return
    error, *others = made.failures
    for other in others:
        error.add_note(str(other))
    raise error


class _Search:
    """A search under way: attempts that were made here are at hand, others are made again when they are chosen."""

    def __init__(
        self, task: Task, recipe: Recipe, first: Attempt, outcome: Outcome, start: Setting, make: Make
    ) -> None:
        self.task, self.recipe, self.budget, self.make = task, recipe, first.recipe.budget, make
        self.start, self.outcome, self.first = start, outcome, first
        self.best: dict[Setting, Attempt] = {start: first}
        self.can = self._capabilities()

    def run(self) -> Found:
        work = self.task.work.scratch("trials", stage_key(self._identity()))
        storage, name = self.recipe.search.storage, f"edgekit {stage_key(self._identity())[:16]}"
        with open_store(work, name=name, identity=self._identity(), storage=storage) as store:
            while (trial := store.claim(self._next)) is not None:
                self.task.clock.detail(f"search: {trial}")
                try:
                    store.finish(self._try(trial))
                except (UsageError, LoweringError) as error:
                    store.fail(str(error).split("\n", 1)[0])
            trials = store.trials()
        return self._found(trials)

    def _next(self, trials: Sequence[Trial]) -> Setting | None:
        return next_setting(trials, self.budget, self.can) if trials else self.start

    def _try(self, trial: Trial) -> Outcome:
        if trial.setting == self.start:
            return self.outcome
        began = time.monotonic()
        made = self._made(trial.setting)
        outcome = outcome_of(made, time.monotonic() - began)
        self.best[trial.setting] = made
        return outcome

    def _found(self, trials: Sequence[Trial]) -> Found:
        rows = tuple(trial_table(trials, self.budget))
        front = {trial.number for trial in pareto(trials)}
        rows = tuple({**row, "pareto": row["number"] in front} for row in rows)
        best = chosen(trials, self.budget)
        miss = nearest_miss(trials, self.budget, self.can) if best is None else None
        trial = best or (miss.trial if miss else None)
        sentences = miss.sentences() if miss else ()
        if miss and self.task.inputs.training is None:
            sentences += ("nothing was pruned or trained: the data names no training set (train_x)",)
        if trial is None:
            return Found(self.first, rows, None, sentences)
        made = self.best.get(trial.setting) or self._made(trial.setting)
        return Found(made, rows, trial.number, sentences)

    def _made(self, setting: Setting) -> Attempt:
        made = self.make(self.task, setting.applied(self.recipe), islands=False)
        _in_some_format(made)
        return made

    def _identity(self) -> dict[str, str]:
        """Trials are of the same search only if all of this is the same."""
        plain = self.recipe.to_dict()
        plain.pop("search")
        trained_on = self.task.inputs.training.sha256 if self.task.inputs.training else ""
        return {
            "model": self.task.candidate.sha256,
            "data": f"{self.task.inputs.sha256} {trained_on}",
            "recipe": stage_key(plain),
            "versions": stage_key(versions()),
        }

    def _capabilities(self) -> Capabilities:
        training = self.task.inputs.training is not None
        made = capabilities(self.recipe, training=training, islands=_islands(self.first))
        heavy = missed(self.outcome, replace(self.budget, max_drop=None))
        if not heavy or len(made.ratios) == 1:
            return made
        self.task.clock.detail("search: what the heaviest pruning takes")
        try:
            lightest = self._lightest()
        except (UsageError, LoweringError):
            return replace(made, ratios=made.ratios[:1])
        return replace(made, floor_ms=lightest.latency_ms, floor_bytes=lightest.size_bytes)

    def _lightest(self) -> Outcome:
        """What the heaviest pruning takes; untrained, as weights take no time."""
        recipe = replace(
            self.recipe,
            prune=replace(self.recipe.prune, ratio=HEAVIEST, rounds=1, importance="magnitude"),
            train=replace(self.recipe.train, epochs=0),
            qat=replace(self.recipe.qat, enabled=False),
            # It loses everything, and no lower rung of the ladder is to make good for that.
            budget=replace(self.recipe.budget, allow_slower=True, max_drop=sys.float_info.max),
        )
        made = self.make(self.task, recipe, islands=False)
        _in_some_format(made)
        return outcome_of(made, 0.0)


def _setting(made: Attempt) -> Setting:
    """What the first attempt did, layers that it kept float for the budget included."""
    recipe = made.recipe
    return Setting(
        Calibration.of(recipe.quantize), recipe.prune.ratio, made.settled.kept, recipe.qat.enabled is True
    )


def outcome_of(made: Attempt, seconds: float) -> Outcome:
    """What was measured on the files of an attempt."""
    refused = [str(failure).split("\n", 1)[0] for failure in made.failures]
    for name, judged in made.judged.items():
        if not judged.proof.holds:
            refused.append(f"{name}: the file differs from the reference by {judged.proof.max_steps:g} steps")
    measured = {name: _measured(j) for name, j in made.judged.items()}
    return Outcome(measured, round(seconds, 1), tuple(refused), made.float_drop)


def _measured(judged: Judged) -> Measured:
    content, took = digest(judged.saved.path), judged.judged_ms
    # On a target, float is taken to be as much slower or faster as it is here.
    scale = took / judged.latency.p50_ms if took is not None and judged.latency else 1.0
    return Measured(
        metric=judged.quality.metric,
        drop=judged.quality.drop,
        latency_ms=took,
        float_latency_ms=judged.float_latency.p50_ms * scale if judged.float_latency else None,
        size_bytes=content.size_bytes,
        proven=judged.proof.holds,
        sha256=content.sha256,
    )


def _islands(made: Attempt) -> tuple[Island, ...]:
    """Layers that could stay float: what each does to the output, and what it would cost.

    What a layer takes longer in float is its share, by multiplications, of what INT8 saves of the whole network.
    """
    saved = max(
        (
            j.float_latency.p50_ms - j.latency.p50_ms
            for j in made.judged.values()
            if j.latency and j.float_latency
        ),
        default=0.0,
    )
    layers = [layer for layer in made.settled.layers if not layer.kept_float]
    macs = sum(layer.macs for layer in layers) or 1
    found: dict[str, Island] = {}
    for layer in layers:
        if layer.damage_db is None or not math.isfinite(layer.damage_db):
            continue
        cost = max(saved, 0.0) * layer.macs / macs * (1 + CONVERSION)
        found[layer.name] = Island(layer.name, damage_of(layer.damage_db), cost, 3 * layer.weight_bytes)
    return tuple(found.values())


__all__ = ["Found", "Told", "may_search", "outcome_of", "read_trial", "rebuild", "search"]
