"""Estimates for boards from their data sheets, beside what others published.

`python -m benchmarks.boards`. Every published figure is compared with the uncorrected estimate for its board; what is
between them corrects and bounds the estimates for boards, each board judged by the others. `--write` makes that the
package's evidence, keeps the operators of three networks, and writes the table in `docs/boards.md`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.prediction import EVIDENCE, write_evidence
from benchmarks.published import FIGURES, HELD_OUT, Figure, boards
from benchmarks.zoo_files import NETWORKS, PUBLISHED, files
from edgekit.bench.predict import Op, estimate, intervals, read_ops, roofline
from edgekit.bench.predict.intervals import Residual, Spread, spread
from edgekit_devices import load_profile, names

HERE = Path(__file__).parent
RESULT = HERE / "results" / "boards.json"
OPERATORS = HERE / "results" / "operators.json"
PAGE = HERE.parent / "docs" / "boards.md"
BEGIN, END = "<!-- table: python -m benchmarks.boards --write -->", "<!-- end of the table -->"
SHOWN = {"mobilenet-v2": "MobileNetV2", "efficientnet-lite0": "EfficientNet-Lite0", "ds-cnn": "DS-CNN"}
PRECISIONS = {"float32": "float", "int8": "INT8"}


def operators() -> dict[str, tuple[Op, ...]]:
    """Network and precision to the operators of its TFLite file; files are made where they are not there."""
    wanted = {figure.network for figure in (*FIGURES, *HELD_OUT)} | set(SHOWN)
    found: dict[str, tuple[Op, ...]] = {}
    for network in (*NETWORKS, *PUBLISHED):
        if network.name in wanted:
            for (format, precision), path in files(network).items():
                if format == "tflite":
                    found[f"{network.name} {precision}"] = read_ops(path)
    return found


def kept_operators(path: Path = OPERATORS) -> dict[str, tuple[Op, ...]]:
    """Operators of the networks of the table, as they were kept."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    return {name: tuple(Op(*row) for row in rows) for name, rows in tree.items()}


def keep_operators(ops: Mapping[str, Sequence[Op]], path: Path = OPERATORS) -> None:
    """Keep the operators of the networks of the table, one a line."""
    blocks = []
    for name, found in ops.items():
        if name.split()[0] in SHOWN:
            rows = ",\n".join(f"  {json.dumps(_row(op))}" for op in found)
            blocks.append(f"{json.dumps(name)}: [\n{rows}\n ]")
    path.write_text("{" + ",\n ".join(blocks) + "}\n", encoding="utf-8")


def _row(op: Op) -> list[Any]:
    return [op.kind, op.precision, op.work, *op.shape, op.weight_bytes, op.moved_bytes]


def residuals(ops: Mapping[str, Sequence[Op]], figures: Sequence[Figure]) -> list[Residual]:
    """Logarithm of published over estimated, uncorrected, for each figure."""
    known = boards()
    found: list[Residual] = []
    for figure in figures:
        by_op, call_ms, _ = roofline.raw(
            ops[f"{figure.network} {figure.precision}"], "tflite", known[figure.board], figure.threads
        )
        ratio = math.log(figure.ms / (sum(by_op.values()) + call_ms))
        found.append(Residual("class", figure.board, "tflite", figure.precision, figure.threads, ratio))
    return found


def held_out(ops: Mapping[str, Sequence[Op]], evidence: Sequence[Residual]) -> list[dict[str, Any]]:
    """Estimates for the figures that taught nothing; those without a source also with four threads."""
    rows = []
    for figure in HELD_OUT:
        for threads in (figure.threads,) if figure.source else (figure.threads, 4):
            (residual,) = residuals(ops, [replace(figure, threads=threads)])
            known = spread(evidence, "class", "tflite", figure.precision, threads)
            rows.append({**_compared(figure, residual, known), "threads": threads})
    return rows


def _compared(figure: Figure, residual: Residual, known: Spread) -> dict[str, Any]:
    """A figure beside the corrected estimate and its interval."""
    ms = figure.ms / math.exp(residual.log_ratio - known.bias)
    low, high = ms * math.exp(-known.width), ms * math.exp(known.width)
    return {
        **{key: getattr(figure, key) for key in ("board", "network", "precision", "threads", "source")},
        "published_ms": figure.ms,
        "predicted_ms": round(ms, 2),
        "low_ms": round(low, 2),
        "high_ms": round(high, 2),
        "within": low <= figure.ms <= high,
    }


def table(ops: Mapping[str, Sequence[Op]]) -> str:
    """The table of the documentation: estimates of three networks, published figures beside them."""
    published = {(f.board, f.network, f.precision, f.threads): f.ms for f in (*FIGURES, *HELD_OUT)}
    lines = [
        "| board | threads | network | float: estimate (interval) | published | INT8: estimate | published |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names():
        profile = load_profile(name)
        for network, title in SHOWN.items() if profile.processors else ():
            for threads in sorted(
                {profile.threads, *(key[3] for key in published if key[:2] == (name, network))}
            ):
                cells = []
                for precision in PRECISIONS:
                    found = estimate(ops[f"{network} {precision}"], "tflite", profile, threads=threads)
                    cells.append(f"~{_ms(found.ms)} ({_ms(found.low_ms)} to {_ms(found.high_ms)})")
                    ms = published.get((name, network, precision, threads))
                    cells.append(_ms(ms) if ms is not None else "")
                lines.append(f"| `{name}` | {threads} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ms(value: float) -> str:
    return f"{value:.3g}"


def page_with(text: str, ops: Mapping[str, Sequence[Op]]) -> str:
    """A page with its table made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table(ops)}\n\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--write", action="store_true", help="evidence, operators and the page")
    options = parser.parse_args(arguments)
    ops = operators()
    found = residuals(ops, FIGURES)
    rows = []
    for figure, residual in zip(FIGURES, found, strict=True):
        others = [each for each in found if each.group != figure.board]
        rows.append(
            _compared(figure, residual, spread(others, "class", "tflite", figure.precision, figure.threads))
        )
    result = {"left_out": rows, "held_out": held_out(ops, found)}
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.write:
        own = [["class", r.group, r.format, r.precision, r.threads, round(r.log_ratio, 4)] for r in found]
        tree = json.loads(EVIDENCE.read_text(encoding="utf-8"))
        write_evidence([*(row for row in tree["residuals"] if row[0] != "class"), *own])
        intervals.evidence.cache_clear()
        intervals.known_spread.cache_clear()
        keep_operators(ops)
        PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), ops), encoding="utf-8")


if __name__ == "__main__":
    main()
