"""Measures the hot paths and shows what moved since the results were stored.

`python -m benchmarks.guard [--update] [--only NAME] [--processes 3] [--margin 0.05] [--results FILE]`. Every suite runs
under pytest-benchmark, in some fresh processes. Exit status 0: nothing is slower; 1: something is, beyond noise and
margin; 2: it could not be measured, or the stored results cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.guard.verdicts import (
    GONE,
    SCHEMA,
    SLOWER,
    GuardError,
    compare,
    known,
    measured,
    render,
    stored,
    with_entry,
)
from benchmarks.machine import machine

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "guard.json"
PROCESSES = 3
MARGIN = 0.05
# Exit status of pytest.
NO_TESTS = 5
# One thread each, and the same order of sets: what is measured is the code.
QUIET = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, and store where that is asked for; returns the exit status."""
    asked = _parser().parse_args(arguments)
    here = machine()
    try:
        tree = _read(asked.results)
        then = stored(tree, here["isa"])
        now = measured([_run(asked.only, number) for number in range(asked.processes)])
        rows = compare(then or {}, now, margin=asked.margin)
        if asked.only:
            rows = tuple(each for each in rows if each.verdict != GONE)
        print(render(rows))
        if then is None:
            isa = ", ".join(here["isa"]) or "no extensions"
            others = "; ".join(known(tree)) or "no machine"
            print(
                f"\nNothing is compared: results are stored of {others}, this one has {isa}. --update stores."
            )
        if asked.update:
            asked.results.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(with_entry(tree, here, now), indent=1)
            asked.results.write_text(text + "\n", encoding="utf-8")
            print(f"\nstored in {asked.results}")
            return 0
    except GuardError as error:
        print(f"guard: {error}", file=sys.stderr)
        return 2
    slower = [each.name for each in rows if each.verdict == SLOWER]
    if slower:
        print(f"\nslower by more than noise and {asked.margin:.0%}: {', '.join(slower)}", file=sys.stderr)
        print("If that is meant, store the new figures: python -m benchmarks.guard --update", file=sys.stderr)
    return int(bool(slower))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.guard", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--update", action="store_true", help="store what was measured, whatever it is")
    parser.add_argument("--only", default="", metavar="NAME", help="suites to run, as pytest's -k")
    parser.add_argument(
        "--processes", type=_at_least_one, default=PROCESSES, help="fresh processes, each runs all"
    )
    parser.add_argument("--margin", type=_share, default=MARGIN, help="share beyond noise that passes: 0.05")
    parser.add_argument("--results", type=Path, default=RESULT, metavar="FILE", help="of what was stored")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number of at least 1")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 10:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a share such as 0.05")
    return share


def _read(path: Path) -> Any:
    if not path.exists():
        return {"schema": SCHEMA, "entries": []}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GuardError(
            f"{path}: {error}; expected JSON that --update wrote. Take the repository's."
        ) from error


def _run(only: str, number: int) -> dict[str, Any]:
    """All suites in a fresh process; what pytest-benchmark writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "benchmarks.json"
        command = [
            sys.executable, "-m", "pytest", "benchmarks/guard", "-q", "-p", "no:xdist", "-p", "no:cacheprovider",
            "--benchmark-disable-gc", "--benchmark-quiet", f"--benchmark-json={out}", f"--basetemp={folder}/data",
        ]  # fmt: skip
        if only:
            # Where no suite is meant, pytest's own status tells.
            command += ["-k", only, "-W", "ignore:Not saving anything"]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False
        )
        if done.returncode == NO_TESTS:
            raise GuardError(
                f"no suite fits {only!r}; expected a part of a name in the table, as pytest's -k takes it."
            )
        if done.returncode:
            told = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
            raise GuardError(
                f"the suites ended with status {done.returncode} in process {number + 1}:\n{told}"
            )
        document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return document


if __name__ == "__main__":
    sys.exit(main())
