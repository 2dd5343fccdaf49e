"""`python -m benchmarks.peers`: convert, judge and time every candidate on every network."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import Engine, open_file, predict_all
from benchmarks.machine import machine
from benchmarks.measure import float_outputs, interleaved, latency, quality, ratio
from benchmarks.networks import NETWORKS, MissingDataError, Network
from benchmarks.peers.table import CANDIDATES, CONTESTS, ROOT, Candidate, obtain
from benchmarks.peers.tables import markdown

RESULTS = ROOT / "benchmarks" / "results"


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when every contest that could be held was won."""
    options = _options(argv)
    result: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "networks": {}}
    for network in NETWORKS:
        if network.name not in options.network:
            continue
        try:
            result["networks"][network.name] = _measure(network, options)
        except MissingDataError as missing:
            print(f"{network.name}: skipped, {missing}", file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
    table = markdown(result)
    (options.out / "peers.md").write_text(table)
    print(table)
    return 1 if _lost(result) else 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    names = [network.name for network in NETWORKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--network", nargs="+", choices=names, default=names)
    parser.add_argument("--candidate", nargs="+", default=[c.name for c in CANDIDATES])
    parser.add_argument("--rounds", type=int, default=60, help="samples of each latency")
    parser.add_argument("--judge", type=int, help="judge on fewer samples; 0 times only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def _measure(network: Network, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one network; a candidate that fails is an entry, not an end."""
    module, calibration = network.make(), network.calibration(network.calibrate)
    entries: dict[str, dict[str, Any]] = {}
    engines: dict[str, Engine] = {}
    for candidate in CANDIDATES:
        if candidate.name in options.candidate:
            entries[candidate.name] = _convert(candidate, network, module, calibration, engines)
    count = network.judge if options.judge is None else min(options.judge, network.judge)
    samples = network.evaluation(max(count, 1))
    if count:
        reference = float_outputs(module, samples)
        labels = network.labels()[:count] if network.labels else None
        entries["float"] = {"quality": quality(reference, reference, labels)}
        for name, engine in engines.items():
            entries[name]["quality"] = quality(predict_all(engine, samples), reference, labels)
            print(f"{network.name}: {name} {entries[name]['quality']}", file=sys.stderr)
    timed = {
        c.name: engines[c.name].prepare(samples[:1]) for c in CANDIDATES if c.timed and c.name in engines
    }
    times = interleaved(timed, rounds=options.rounds)
    for name, values in times.items():
        entries[name]["latency_ms"] = latency(values)
    held = [(a, b) for a, b, _ in CONTESTS if a in times and b in times]
    return {"candidates": entries, "ratios": {f"{a}/{b}": ratio(times[a], times[b]) for a, b in held}}


def _convert(
    candidate: Candidate, network: Network, module: Any, calibration: Any, engines: dict[str, Engine]
) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        path = obtain(candidate, module, calibration, ROOT / ".cache" / "peers" / network.name)
        engine = open_file(path)
        finite = bool(np.isfinite(engine.predict(calibration[:1])).all())
    except Exception as error:  # noqa: BLE001 - peers fail in ways of their own; the failure is the result
        print(f"{network.name}: {candidate.name} failed: {str(error)[:200]}", file=sys.stderr)
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    if not finite:
        return {"failed": "the output is not finite"}
    engines[candidate.name] = engine
    print(f"{network.name}: {candidate.name} ready, {time.perf_counter() - start:.1f} s", file=sys.stderr)
    return {"size_bytes": path.stat().st_size}


def _lost(result: dict[str, Any]) -> list[str]:
    lost = [
        f"{name}: {ours} takes {network['ratios'][f'{ours}/{theirs}']:.3f} of {theirs}, at most {bound:.2f}"
        for name, network in result["networks"].items()
        for ours, theirs, bound in CONTESTS
        if network["ratios"].get(f"{ours}/{theirs}", 0.0) > bound
    ]
    for line in lost:
        print(line, file=sys.stderr)
    return lost


if __name__ == "__main__":
    sys.exit(main())
