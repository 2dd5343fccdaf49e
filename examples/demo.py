"""`make demo`: two real networks, compressed and proven on real data, and a fleet of twenty devices that runs one.

`python -m examples.demo [digits] [efficientnet-lite0] [fleet] [--out demo-out]`. The exit status is 0 when every file
was made and proven, the good version reached every device, and the bad one was stopped; whether INT8 is also faster
than float depends on the machine and stands in the table.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

import edgekit
from edgekit.progress import shown
from edgekit.report import summary


@dataclass(frozen=True, slots=True)
class Case:
    """A trained network and its data.

    Attributes:
        title: what is shown.
        load: gives the network in evaluation mode and the arrays as `edgekit.compress` takes them.
        max_drop: budget, in the unit of the metric that suits the data.
    """

    title: str
    load: Callable[[], tuple[nn.Module, Mapping[str, Any]]]
    max_drop: float


def _digits() -> tuple[nn.Module, Mapping[str, Any]]:
    from examples import demo_digits

    data = demo_digits.data()
    return demo_digits.train(data["train_x"], data["train_y"]), data


def _efficientnet() -> tuple[nn.Module, Mapping[str, Any]]:
    from examples import demo_photos

    return demo_photos.network(), demo_photos.data()


FLEET = "fleet"
CASES: dict[str, Case] = {
    "digits": Case("UCI handwritten digits, a small CNN trained on the spot", _digits, max_drop=0.01),
    # No labels, so agreement is measured, also on crops whose two best classes are as good as equal.
    "efficientnet-lite0": Case(
        "EfficientNet-Lite0 from ImageNet, on crops of photographs", _efficientnet, max_drop=0.1
    ),
}


def _run(name: str, out: Path, console: Console) -> bool:
    if name != FLEET:
        return compress(CASES[name], out, console)
    from examples import demo_fleet

    # Of an earlier run; a fleet is begun in an empty place only.
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return demo_fleet.run(out.resolve(), console)


def compress(case: Case, out: Path, console: Console) -> bool:
    """Compress one network, print its table and where its report is.

    Args:
        case: what to compress.
        out: directory of the bundle; an earlier bundle there is replaced.
        console: to print on.

    Returns:
        Whether every format was made and every proof holds.
    """
    console.rule(f"[bold]{case.title}", align="left")
    started = time.monotonic()
    model, data = case.load()
    with shown(Console(stderr=True, highlight=False)) as progress:
        bundle = edgekit.compress(model, data=data, out=out, max_drop=case.max_drop, progress=progress)
    report = bundle.report
    console.print(summary(report))
    console.print(
        f"report: {bundle.path / 'report.html'}  ({time.monotonic() - started:.0f} s)", soft_wrap=True
    )
    console.print()
    proven = all(a["proof"] is not None and a["proof"]["holds"] for a in report["artifacts"].values())
    return proven and not report["failures"]


def main(arguments: list[str] | None = None) -> int:
    """Run the cases that are named, all of them without names."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    names = [*CASES, FLEET]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="directory of the bundles")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.cases) - set(names))
    if unknown:
        parser.error(f"unknown case {', '.join(unknown)}: expected {', '.join(names)}")
    console = Console(highlight=False, width=max(110, Console().width))
    done = [_run(name, options.out / name, console) for name in options.cases or names]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
