"""`edgekit rollout plan`: devices and days that a rollout takes, without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.fleet.commands import terminal
from edgekit.fleet.commands.common import Json, usage

if TYPE_CHECKING:
    from edgekit.fleet.rules.planning import Foreseen


def mount(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: edgekit rollout plan --devices 5000 --samples-per-device-day 400 --baseline 0.97 "
        "--agreement-drop 0.02 --mode shadow"
    )(plan)


def plan(
    devices: Annotated[int, typer.Option(help="Of the cohort.")],
    samples_per_device_day: Annotated[
        float | None,
        typer.Option(help="Predictions that a device compares, or serves, in a day; 1000 without."),
    ] = None,
    windows_per_day: Annotated[
        float | None, typer.Option(help="Instead of that: windows of a device, of 100 predictions each.")
    ] = None,
    baseline: Annotated[float, typer.Option(help="Mean agreement of a good candidate.")] = 0.97,
    spread: Annotated[float, typer.Option(help="Of the agreement between devices.")] = 0.03,
    agreement_drop: Annotated[
        float, typer.Option(help="By which a bad candidate agrees less, and is to be stopped for.")
    ] = 0.02,
    agreement: Annotated[
        float | None, typer.Option(help="Limit of the gate; in the middle of good and bad without.")
    ] = None,
    errors: Annotated[
        float | None, typer.Option(help="Limit; with ab the smallest difference that matters.")
    ] = None,
    nans: Annotated[
        float | None, typer.Option(help="Limit; with ab the smallest difference that matters.")
    ] = None,
    latency_ratio: Annotated[
        float | None, typer.Option(help="Limit; with ab the smallest difference that matters.")
    ] = None,
    failures: Annotated[float | None, typer.Option(help="Limit of the share of devices that fail.")] = None,
    latency_spread: Annotated[
        float, typer.Option(help="Of the log of the latency between devices, for A/B.")
    ] = 0.3,
    alpha: Annotated[float, typer.Option(help="Chance to stop a version that is good.")] = 0.05,
    power: Annotated[float, typer.Option(help="Chance to show what is planned for.")] = 0.8,
    stages: Annotated[str, typer.Option(help="Percent of the cohort, rising.")] = "1,10,50,100",
    mode: Annotated[str, typer.Option(help="shadow, canary or ab.")] = "shadow",
    soak: Annotated[str, typer.Option(metavar="TIME", help="That each step takes at least.")] = "1h",
    timeout: Annotated[
        str, typer.Option(metavar="TIME", help="Without a verdict, before a person is asked.")
    ] = "7d",
    min_devices: Annotated[int, typer.Option(help="That have to show enough.")] = 5,
    min_samples: Annotated[int, typer.Option(help="Predictions of a device that are enough.")] = 100,
    as_json: Json = False,
) -> None:
    """Say how many devices and days each gate takes, and what it can see; exit code 3 where it may not decide."""

    def work() -> int:
        from edgekit.fleet.rules.gates import Limits
        from edgekit.fleet.rules.planning import Expected, foreseen
        from edgekit.fleet.rules.rollouts import Plan

        if samples_per_device_day is not None and windows_per_day is not None:
            raise usage("--samples-per-device-day and --windows-per-day", "one of them")
        rate = 100 * windows_per_day if windows_per_day is not None else samples_per_device_day or 1000.0
        limit = baseline - agreement_drop / 2 if agreement is None else agreement
        given = {"errors": errors, "nans": nans, "latency_ratio": latency_ratio, "failures": failures}
        limits = Limits(
            agreement=limit, devices=min_devices, samples=min_samples, alpha=alpha,
            **{name: value for name, value in given.items() if value is not None},
        )  # fmt: skip
        asked = Plan(
            stages=tuple(terminal.percents(stages)), mode=mode, soak_s=terminal.seconds(soak),
            timeout_s=terminal.seconds(timeout), limits=limits,
        )  # fmt: skip
        expected = Expected(devices, rate, baseline, spread, agreement_drop, latency_spread, power)
        found = foreseen(asked, expected)
        if as_json:
            terminal.tell(found.to_tree())
        else:
            _show(found)
        return terminal.MISSED if found.warnings else terminal.OK

    terminal.run(work)


def _show(found: Foreseen) -> None:
    rows = []
    for step in found.steps:
        for number, need in enumerate(step.needs):
            first = (f"{step.percent:g}%", step.phase, f"{step.days:.3g}") if number == 0 else ("", "", "")
            counts = ("" if each is None else f"{each:,}" for each in (need.to_pass, need.to_stop))
            rows.append((*first, need.gate, f"{need.devices:,}", *counts, "yes" if need.decides else "no"))
    columns = ("stage", "phase", "days", "gate", "devices there", "take to pass", "take to stop", "decides")
    terminal.listing(columns, rows)
    terminal.say(f"A good candidate reaches everybody after {found.days:.3g} days at the earliest.")
    if found.smallest_drop is not None:
        terminal.say(f"The smallest drop in agreement that these devices show: {found.smallest_drop:.2%}.")
    for each in found.warnings:
        terminal.say(f"May end without a verdict: {each}.")
