"""`edgekit fleet simulate`: options to a world and a plan, progress on stderr, a picture or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from edgekit.errors import EdgekitError
from edgekit.fleet.errors import InvalidError
from edgekit.fleet.rules.gates import Limits
from edgekit.fleet.rules.rollouts import MODES, Plan
from edgekit.fleet.simulate.many import many
from edgekit.fleet.simulate.picture import summary_table, svg, table
from edgekit.fleet.simulate.run import History, Moment, run
from edgekit.fleet.simulate.world import FAULTS, Hit, World

DONE, INTERRUPTED = 0, 130
# How far below the agreement that is expected the limit is, unless it is given.
SLACK: Final = 0.01


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be simulated.

    Attributes:
        devices: of the fleet.
        stages: percent.
        mode: of the rollout.
        cohort: expression over the labels region and hardware.
        faults: as `Hit.parse` reads them.
        agreement: that the operator expects.
        min_agreement: limit of the gate, None for a point below what is expected.
        drop: by which the candidate is worse.
        latency_ratio: of the candidate.
        soak_s: of each step.
        timeout_s: of each step.
        patience_s: before a device counts as silent.
        seed: of every random choice.
        runs: how often.
        svg: file of the picture, None for none.
        as_json: whether the figures go to stdout.
    """

    devices: int = 5000
    stages: str = "1,10,50,100"
    mode: str = "shadow"
    cohort: str = ""
    faults: tuple[str, ...] = ()
    agreement: float = 0.97
    min_agreement: float | None = None
    drop: float = 0.0
    latency_ratio: float = 0.9
    soak_s: int = 3600
    timeout_s: int = 86400
    patience_s: int = 7200
    seed: int = 1
    runs: int = 1
    svg: Path | None = None
    as_json: bool = False

    def world(self) -> World:
        """The world of these options."""
        return World(
            devices=self.devices,
            agreement=self.agreement - self.drop,
            latency_ratio=self.latency_ratio,
            hits=tuple(Hit.parse(each) for each in self.faults),
        )

    def plan(self) -> Plan:
        """The plan of these options."""
        try:
            stages = tuple(float(each) for each in self.stages.split(","))
        except ValueError as error:
            raise _wrong(f"--stages {self.stages}", "rising percent, such as 1,10,50,100") from error
        limit = self.agreement - SLACK if self.min_agreement is None else self.min_agreement
        return Plan(
            stages=stages, mode=self.mode, cohort=self.cohort, soak_s=self.soak_s, timeout_s=self.timeout_s,
            patience_s=self.patience_s, limits=Limits(agreement=limit),
        )  # fmt: skip


def simulate(options: Options, *, out: Console | None = None, err: Console | None = None) -> int:
    """Simulate, and show what came of it.

    Args:
        options: as they were given.
        out: of the result, stdout if None.
        err: of the progress, stderr if None.

    Returns:
        Exit status: 0, or 130 after Ctrl-C.

    Raises:
        InvalidError: an option cannot be used.
    """
    out, err = out or Console(highlight=False), err or Console(stderr=True, highlight=False)
    if options.runs < 1:
        raise _wrong(f"--runs {options.runs}", "at least 1")
    if options.seed < 0:
        raise _wrong(f"--seed {options.seed}", "a whole number of at least 0")
    if options.svg is not None and options.runs > 1:
        raise _wrong("--svg with --runs", "a picture of one rollout")
    world, plan = options.world(), options.plan()
    try:
        if options.runs > 1:
            _show_many(options, world, plan, out, err)
        else:
            _show_one(options, world, plan, out, err)
    except KeyboardInterrupt:
        err.print("interrupted", style="red")
        return INTERRUPTED
    return DONE


def _show_many(options: Options, world: World, plan: Plan, out: Console, err: Console) -> None:
    with _progress(err) as progress:
        task = progress.add_task("rollouts", total=options.runs)
        summary = many(
            world, plan, runs=options.runs, seed=options.seed,
            watch=lambda done: progress.update(task, completed=done),
        )  # fmt: skip
    if options.as_json:
        _print_json(out, {"options": _told(options), **summary.to_tree()})
    else:
        out.print(summary_table(summary))


def _show_one(options: Options, world: World, plan: Plan, out: Console, err: Console) -> None:
    with _progress(err) as progress:
        steps = len(plan.stages) * (2 if plan.mode == "shadow" else 1)
        task = progress.add_task("", total=steps)
        history = run(
            world, plan, seed=options.seed, watch=lambda moment: _watch(progress, task, plan, moment)
        )
    if options.svg is not None:
        try:
            options.svg.write_text(svg(history), encoding="utf-8")
        except OSError as error:
            raise _wrong(f"--svg {options.svg}: {error.strerror}", "a file that can be written") from error
    if options.as_json:
        _print_json(out, {"options": _told(options), **tree_of(history)})
    else:
        out.print(table(history))


def tree_of(history: History) -> dict[str, Any]:
    """A history as plain JSON values."""
    return {
        "state": history.state, "why": history.why, "stopped_at": history.stopped_at, "seconds": history.seconds,
        "cohort": history.cohort, "exposed": history.exposed, "touched": history.touched, "kept": history.kept,
        "away": history.away, "windows": history.windows, "rules": history.rules,
        "moments": [asdict(each) for each in history.moments],
    }  # fmt: skip


@contextmanager
def _progress(err: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield progress


def _watch(progress: Progress, task: TaskID, plan: Plan, moment: Moment) -> None:
    phases = 2 if plan.mode == "shadow" else 1
    done = phases * moment.stage + (phases - 1 if moment.phase == "live" else 0)
    text = f"{plan.stages[moment.stage]:g}% {moment.phase}, {moment.t_s / 3600:.1f} h"
    progress.update(task, completed=done, description=text)


def _print_json(out: Console, tree: dict[str, Any]) -> None:
    # Not by `print`: rich would break long lines.
    out.file.write(json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def _told(options: Options) -> dict[str, Any]:
    tree = asdict(options)
    del tree["as_json"], tree["svg"]
    return tree


def _wrong(found: str, expected: str) -> InvalidError:
    return InvalidError(
        found, expected=expected, way_out="See `edgekit fleet simulate --help`.", code="options"
    )


def command(
    devices: Annotated[int, typer.Option(help="Virtual devices, up to 5,000,000.")] = 5000,
    stages: Annotated[str, typer.Option(help="Percent of the cohort, rising.")] = "1,10,50,100",
    mode: Annotated[str, typer.Option(help=f"One of {', '.join(MODES)}.")] = "shadow",
    cohort: Annotated[str, typer.Option(help="Expression over region and hardware.")] = "",
    fault: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=SHARE[@LABEL=VALUE]]", help=f"Repeatable; of {', '.join(FAULTS)}."),
    ] = None,
    agreement: Annotated[float, typer.Option(help="With the live version, as it is expected.")] = 0.97,
    min_agreement: Annotated[
        float | None, typer.Option(help="Limit; a point below what is expected if not given.")
    ] = None,
    drop: Annotated[float, typer.Option(help="By which the candidate agrees less than expected.")] = 0.0,
    latency_ratio: Annotated[float, typer.Option(help="Of the candidate to the live version.")] = 0.9,
    soak_s: Annotated[int, typer.Option(help="Seconds that each step takes at least.")] = 3600,
    timeout_s: Annotated[int, typer.Option(help="Seconds after which a step is held.")] = 86400,
    patience_s: Annotated[int, typer.Option(help="Seconds of silence that count as a failure.")] = 7200,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 1,
    runs: Annotated[int, typer.Option(help="How many rollouts.")] = 1,
    svg: Annotated[Path | None, typer.Option(help="File for a picture of the rollout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures to stdout, nothing else.")] = False,
) -> None:
    """Try a rollout on virtual devices, with the policy, the gates and the merging of a real fleet."""
    options = Options(
        devices, stages, mode, cohort, tuple(fault or ()), agreement, min_agreement, drop, latency_ratio,
        soak_s, timeout_s, patience_s, seed, runs, svg, as_json,
    )  # fmt: skip
    try:
        code = simulate(options)
    except EdgekitError as error:
        Console(stderr=True, highlight=False).print(
            f"error: {error}", style="red", markup=False, soft_wrap=True
        )
        code = error.exit_code
    raise typer.Exit(code)
