"""What the commands of the fleet share: errors to words and exit codes, JSON, tables, times as people write them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NoReturn

import typer
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from edgekit.errors import EdgekitError
from edgekit.fleet.errors import InvalidError

OK, USAGE, MISSED, INTERRUPTED = 0, 2, 3, 130
# Columns of tables that go into a file or a pipe, where nothing should be cut off.
WIDE: Final = 240
errors = Console(stderr=True, highlight=False)

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_COLOURS: Final = {"pass": "green", "fail": "red", "hold": "yellow"}
_STATES: Final = {
    "running": "cyan", "paused": "yellow", "held": "yellow", "completed": "green", "failed": "red", "aborted": "red",
}  # fmt: skip


def out() -> Console:
    """What people read; as wide as their terminal, and where there is none nothing is cut off."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)


def run(work: Callable[[], int | None]) -> NoReturn:
    """Do a command: every error that is raised on purpose becomes a message and its exit code."""
    try:
        code = work() or OK
    except EdgekitError as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        code = error.exit_code
    except KeyboardInterrupt:
        errors.print("error: interrupted", style="red")
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe left early; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    raise typer.Exit(code)


def say(text: str) -> None:
    """A line or more for people; nothing in it is read as a command of the terminal."""
    out().print(Text(_printable(text)), soft_wrap=True)


def tell(value: Any, *, line: bool = False) -> None:
    """JSON on stdout.

    Args:
        value: plain values.
        line: on one line, for what comes again and again.
    """
    typer.echo(json.dumps(value, indent=None if line else 2, ensure_ascii=False))


def listing(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table."""
    table = Table(*columns)
    for row in rows:
        table.add_row(*(Text(_printable(str(each))) for each in row))
    out().print(table)


def seconds(text: str) -> int:
    """Seconds of "90s", "15m", "1h", "7d" or a plain number of seconds.

    Raises:
        InvalidError: it is none of these.
    """
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text.strip())
    if match is None:
        raise InvalidError(
            f"the time {text[:40]!r}", expected="a whole number and s, m, h or d, such as 90s, 1h or 7d",
            way_out="Write it so.", code="time",
        )  # fmt: skip
    return int(match[1]) * _UNITS[match[2] or "s"]


def percents(text: str) -> list[float]:
    """Numbers parted by commas.

    Raises:
        InvalidError: one is none.
    """
    try:
        return [float(each.strip().removesuffix("%")) for each in text.split(",")]
    except ValueError:
        raise InvalidError(
            f"the stages {text[:80]!r}", expected="rising percent, such as 1,10,50,100", way_out="Write them so.",
            code="plan",
        ) from None  # fmt: skip


def pairs(given: Sequence[str]) -> dict[str, str]:
    """Labels of NAME=VALUE.

    Raises:
        InvalidError: one has no "=".
    """
    if wrong := [each for each in given if "=" not in each]:
        raise InvalidError(
            f"the label {wrong[0][:80]!r}", expected="NAME=VALUE, such as region=eu", way_out="Write it so.",
            code="label",
        )  # fmt: skip
    return dict(each.split("=", 1) for each in given)


def moment(at_s: float) -> str:
    """A time for people, in theirs."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s)) if at_s else "never"


def rollout_view(rollout: Mapping[str, Any]) -> Group:
    """A rollout, its stage and what its gates said last.

    Args:
        rollout: as the server has it.
    """
    plan, state, look = rollout["plan"], str(rollout["state"]), rollout.get("look")
    head = Text.assemble(
        (_printable(f"{rollout['model']} {rollout['version']}"), "bold"), " → ", _printable(rollout["channel"]), "  ",
        (state, _STATES.get(state, "")), f"  {rollout['id']}",
    )  # fmt: skip
    stages = Text("stages  ")
    for number, each in enumerate(plan["stages"]):
        reached = number < rollout["stage"] or state == "completed"
        here = number == rollout["stage"] and not reached
        stages.append(f" {each:g}% ", "reverse" if here else "green" if reached else "dim")
    bound = max(rollout["live_bound"], rollout["shadow_bound"]) / 10_000
    stages.append(f"   {rollout['phase']}, {bound:.4g}% of {_printable(plan['cohort']) or 'everybody'}")
    lines: list[Any] = [head, stages, Text(_printable(f"why     {rollout['why']}"))]
    if look:
        counts = look["counts"]
        lines.append(
            Text(
                f"devices {counts.get('taken', 0)} of {counts.get('meant', 0)} have it,"
                f" {counts.get('failed', 0)} failed, {counts.get('samples', 0):,} predictions"
            )
        )
        lines.append(_gates(look["verdicts"]))
        if counts.get("arms"):
            lines.append(_arms(counts["arms"]))
    else:
        lines.append(Text("The gates were not looked at yet.", style="dim"))
    return Group(*lines)


def _gates(verdicts: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("gate", "verdict", "estimate", "between", "limit", "devices", "why")
    for each in verdicts:
        low, high = (_number(each[key]) for key in ("lower", "upper"))
        table.add_row(
            str(each["gate"]), Text(str(each["outcome"]), _COLOURS.get(str(each["outcome"]), "")),
            _number(each["estimate"]), f"{low} … {high}" if low or high else "", _number(each["limit"]),
            f"{each['devices']}/{each['meant']}", Text(_printable(str(each["why"]))),
        )  # fmt: skip
    return table


def _arms(arms: Mapping[str, Any]) -> Table:
    """Both arms of an A/B comparison."""
    title = f"A/B: {arms['verdict']}; {arms['candidate']} devices with it, {arms['control']} without"
    table = Table(
        "measure",
        "candidate",
        "control",
        "difference",
        "between",
        "matters from",
        "pairs",
        "verdict",
        title=title,
    )
    for each in arms["measures"]:
        low, high = (_number(each[key]) for key in ("lower", "upper"))
        table.add_row(
            str(each["says"]), *(_estimate(each[arm]) for arm in ("candidate", "control")),
            _number(each["difference"]), f"{low} … {high}" if low or high else "", _number(each["effect"]),
            str(each["pairs"]), str(each["verdict"]),
        )  # fmt: skip
    even = f"even p {arms['ratio_p']:.3g} (limit {arms['ratio_alpha']:.2g})"
    drift = "" if arms["psi"] is None else f", drift psi {arms['psi']:.3f}, js {arms['jensen_shannon']:.4f}"
    table.caption = even + drift
    return table


def _estimate(arm: Mapping[str, Any]) -> str:
    return (
        f"{_number(arm['mean'])} ({_number(arm['lower'])} … {_number(arm['upper'])})"
        if arm["devices"]
        else ""
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _printable(text: str) -> str:
    """Without what a terminal obeys; labels and notes come from anywhere."""
    return "".join(
        each if each.isprintable() or each == "\n" else "\N{REPLACEMENT CHARACTER}" for each in text
    )
