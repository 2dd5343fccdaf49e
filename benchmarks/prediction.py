"""How far predicted latencies are from measured ones, for networks that had no part in the prediction.

`python -m benchmarks.prediction`. Operators are timed here one by one (`edgekit bench calibrate`), then every file of
the networks of `zoo_files`. Each network in turn is left out: the others give the correction and the interval that its
own files are predicted with. Networks that were there when estimates were shaped, and those that came later
(`zoo_files.LATER`), are summed up apart: the latter say more about a user's network. `--write` also makes the residuals
those that the package predicts with.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from benchmarks.zoo_files import CACHE, FORMATS, LATER, NETWORKS, PRECISIONS, Drawn, files
from edgekit.bench.predict import intervals, roofline
from edgekit.bench.predict.calibrate import calibrate, local_times, to_toml
from edgekit.bench.predict.intervals import Residual, spread
from edgekit.bench.runners import runner
from edgekit_devices import Profile, load_profile, read_profile

RESULT = Path(__file__).parent / "results" / "prediction.json"
EVIDENCE = Path(intervals.__file__).with_name(intervals.EVIDENCE)
THREADS = (1, 2)
Row = dict[str, Any]


def calibrated(path: Path, threads: Sequence[int], *, again: bool, passes: int = 1) -> Profile:
    """The profile of this machine, as `edgekit bench calibrate` writes it; kept in the cache."""
    if again or not path.exists():
        base = load_profile("generic")
        told = lambda share, what: print(f"calibration {share:4.0%} {what}", file=sys.stderr)  # noqa: E731
        profile = calibrate(base, threads=threads, passes=passes, told=told)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(to_toml(profile), encoding="utf-8")
    return read_profile(path.read_text(encoding="utf-8"), path.stem)


def measured(threads: Sequence[int], networks: Sequence[Drawn], passes: int) -> list[Row]:
    """Milliseconds of every file, the fastest of many turns beside the yardstick, in passes that are minutes apart."""
    best: dict[tuple[str, int], Row] = {}
    made = {network.name: files(network) for network in networks}
    times = local_times(runner)
    for index, format, n in product(range(passes), FORMATS, threads):
        paths = {
            f"{name} {precision}": of[format, precision]
            for name, of in made.items()
            for precision in PRECISIONS
            if (format, precision) in of
        }
        for key, ms in times(paths, n).items():
            name, precision = key.split()
            known = best.get((str(paths[key]), n))
            best[str(paths[key]), n] = {
                "network": name,
                "format": format,
                "precision": precision,
                "threads": n,
                "measured_ms": min(ms, known["measured_ms"]) if known else ms,
                "path": str(paths[key]),
            }
        print(f"pass {index + 1}, {format} with {n} threads: {len(paths)} files timed", file=sys.stderr)
    return list(best.values())


def compared(rows: Sequence[Row], profile: Profile) -> list[Row]:
    """Each file predicted by what the other networks taught."""
    ops = {row["path"]: roofline.read_ops(Path(row["path"])) for row in rows}
    raws = [roofline.raw(ops[row["path"]], row["format"], profile, row["threads"]) for row in rows]
    residuals = [
        Residual(
            "calibrated", row["network"], row["format"], row["precision"], row["threads"],
            math.log(row["measured_ms"] / (sum(by_op.values()) + call_ms)),
        )
        for row, (by_op, call_ms, _) in zip(rows, raws, strict=True)
    ]  # fmt: skip
    found: list[Row] = []
    for row, residual, (by_op, call_ms, _) in zip(rows, residuals, raws, strict=True):
        others = [each for each in residuals if each.group != row["network"]]
        known = spread(others, "calibrated", row["format"], row["precision"], row["threads"])
        ms = (sum(by_op.values()) + call_ms) * math.exp(known.bias)
        found.append(
            {
                **{key: value for key, value in row.items() if key != "path"},
                "predicted_ms": ms,
                "low_ms": ms * math.exp(-known.width),
                "high_ms": ms * math.exp(known.width),
                "error": ms / row["measured_ms"] - 1,
                "covered": abs(math.log(row["measured_ms"] / ms)) <= known.width,
                "log_ratio": residual.log_ratio,
                "by_op_ms": {kind: round(part, 5) for kind, part in by_op.items()},
                "call_ms": call_ms,
                "unknown": sorted({op.unknown for op in ops[row["path"]] if op.unknown}),
            }
        )
    return found


def summary(rows: Sequence[Row]) -> Row:
    """What the acceptance looks at."""
    errors = np.abs([row["error"] for row in rows])
    worst = max(rows, key=lambda row: abs(row["error"]))
    return {
        "networks": len({row["network"] for row in rows}),
        "files": len(rows),
        "median_error": float(np.median(errors)),
        "worst_error": float(errors.max()),
        "worst": f"{worst['network']} {worst['precision']} {worst['format']} with {worst['threads']} threads",
        "covered": float(np.mean([row["covered"] for row in rows])),
        "width": float(np.median([row["high_ms"] / row["predicted_ms"] for row in rows])),
    }


def keep_evidence(rows: Sequence[Row]) -> None:
    """Put the residuals in the place of the package's; those of boards stay."""
    tree = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    others = [row for row in tree["residuals"] if row[0] != "calibrated"]
    own = [
        [
            "calibrated",
            row["network"],
            row["format"],
            row["precision"],
            row["threads"],
            round(row["log_ratio"], 4),
        ]
        for row in rows
    ]
    write_evidence([*own, *others])


def write_evidence(rows: Sequence[Sequence[Any]]) -> None:
    """Write the package's residuals, one a line."""
    lines = ",\n".join(f"  {json.dumps(list(row))}" for row in rows)
    EVIDENCE.write_text(f'{{"residuals": [\n{lines}\n]}}\n', encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS))
    parser.add_argument("--network", nargs="+", default=[each.name for each in (*NETWORKS, *LATER)])
    parser.add_argument("--passes", type=int, default=3, help="the fastest of so many counts")
    parser.add_argument("--again", action="store_true", help="calibrate again, though there is a calibration")
    parser.add_argument("--write", action="store_true", help="make the residuals those of the package")
    options = parser.parse_args(arguments)
    profile = calibrated(
        CACHE / "this-machine.toml", options.threads, again=options.again, passes=options.passes
    )
    chosen = [each for each in (*NETWORKS, *LATER) if each.name in options.network]
    rows = compared(measured(options.threads, chosen, options.passes), profile)
    for row in rows:
        name = f"{row['network']:20} {row['format']:6} {row['precision']:7} {row['threads']}"
        print(
            f"{name} {row['measured_ms']:9.4f} ms, predicted {row['predicted_ms']:9.4f} ({row['error']:+.1%})"
        )
    later = {each.name for each in LATER}
    parts = {
        "summary": rows,
        "summary_known": [row for row in rows if not row["unknown"]],
        "summary_shaped": [row for row in rows if row["network"] not in later],
        "summary_later": [row for row in rows if row["network"] in later],
    }
    found = {name: summary(part) for name, part in parts.items() if part}
    print(json.dumps(found, indent=1))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"machine": machine(), **found, "files": rows}, indent=1) + "\n")
    if options.write:
        keep_evidence(rows)


if __name__ == "__main__":
    main()
