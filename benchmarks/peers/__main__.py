"""`python -m benchmarks.peers`: install, convert, judge and time every candidate on every network."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from benchmarks.measure import float_outputs, latency, quality, ratio
from benchmarks.networks import NETWORKS, MissingDataError, Network
from benchmarks.peers import float_litert, float_onnx
from benchmarks.peers.environments import ROOT, Environment, NotInstalledError, environment
from benchmarks.peers.inputs import Inputs
from benchmarks.peers.page import page
from benchmarks.peers.served import PeerError, Served
from benchmarks.peers.table import CANDIDATES, CONTESTS, Candidate, FailedError, obtain
from benchmarks.peers.tables import markdown

RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / ".cache" / "peers"
# A sample of a latency repeats its call until it lasts about so many milliseconds.
SAMPLE_MS = 10.0

Entries = dict[str, dict[str, Any]]
Environments = Mapping[str, Environment | str]
"""By name; a text is the reason why there is none."""


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 when every contest that could be held was won."""
    options = _options(argv)
    chosen = [each for each in CANDIDATES if each.name in options.candidate]
    environments = _environments(chosen)
    result: dict[str, Any] = {
        "machine": machine(),
        "environments": {
            name: {"failed": found} if isinstance(found, str) else {"versions": dict(found.versions)}
            for name, found in environments.items()
        },
        "rounds": options.rounds,
        "networks": {},
    }
    for network in NETWORKS:
        if network.name not in options.network:
            continue
        try:
            result["networks"][network.name] = _measure(network, chosen, environments, options)
        except MissingDataError as missing:
            _tell(f"{network.name}: skipped, {missing}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = markdown(result)
    (options.out / "peers.md").write_text(table, encoding="utf-8")
    (options.out / "peers.html").write_text(page(result), encoding="utf-8")
    print(table)
    return 1 if _lost(result) else 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    names = [network.name for network in NETWORKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--network", nargs="+", choices=names, default=names)
    candidates = [candidate.name for candidate in CANDIDATES]
    parser.add_argument("--candidate", nargs="+", choices=candidates, default=candidates)
    parser.add_argument("--rounds", type=int, default=60, help="samples of each latency")
    parser.add_argument("--judge", type=int, help="judge on fewer samples; 0 times only")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _environments(chosen: Sequence[Candidate]) -> dict[str, Environment | str]:
    """Of all candidates; one that cannot be made is a result, too."""
    found: dict[str, Environment | str] = {}
    for name in dict.fromkeys(each for c in chosen for each in (c.environment, c.runtime)):
        try:
            found[name] = environment(name, told=_tell)
        except NotInstalledError as error:
            _tell(f"{name}: not installed, {error}")
            found[name] = str(error)
    return found


def _inputs(network: Network, module: torch.nn.Module) -> Inputs:
    """Write what every candidate is given."""
    found = Inputs(CACHE / network.name / "inputs")
    found.folder.mkdir(parents=True, exist_ok=True)
    calibration = network.calibration(network.calibrate)
    np.save(found.samples, calibration)
    torch.export.save(torch.export.export(module, (torch.from_numpy(calibration[:1]),)), found.exported)
    float_onnx.build(module, calibration, found.onnx)
    found.tflite.unlink(missing_ok=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            float_litert.build(module, calibration, found.tflite)
    except Exception as error:  # noqa: BLE001 - litert-torch fails in ways of its own
        _tell(f"{network.name}: no float TFLite file, {str(error)[:200]}")
    return found


def _measure(
    network: Network, chosen: Sequence[Candidate], environments: Environments, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything about one network; a candidate that fails is an entry, not an end."""
    module = network.make()
    inputs = _inputs(network, module)
    entries: Entries = {}
    with contextlib.ExitStack() as stack:
        served: dict[str, Served] = {}
        for candidate in chosen:
            try:
                entries[candidate.name], served[candidate.name] = _opened(
                    candidate, inputs, environments, stack
                )
            except (FailedError, PeerError) as error:
                entries[candidate.name] = {"failed": str(error)}
            _tell(f"{network.name}: {candidate.name} {entries[candidate.name]}")
        _judge(network, module, inputs, entries, served, options.judge)
        timed = [c.name for c in chosen if c.timed and c.name in served]
        times = _interleaved({name: served[name] for name in timed}, inputs, options.rounds)
    for name, values in times.items():
        entries[name]["latency_ms"] = latency(values)
    held = [(a, b) for a, b, _ in CONTESTS if a in times and b in times]
    return {
        "candidates": entries,
        "ratios": {f"{a}/{b}": ratio(times[a], times[b]) for a, b in held},
    }


def _opened(
    candidate: Candidate, inputs: Inputs, environments: Environments, stack: contextlib.ExitStack
) -> tuple[dict[str, Any], Served]:
    """A candidate's file with what it cost, in its runtime.

    Raises:
        FailedError: it gives no file.
        PeerError: its runtime does not run it.
    """
    converter, runtime = (environments[name] for name in (candidate.environment, candidate.runtime))
    if isinstance(converter, str) or isinstance(runtime, str):
        raise FailedError(f"not installed: {converter if isinstance(converter, str) else runtime}")
    made = obtain(candidate, inputs, converter)
    engine = stack.enter_context(Served(runtime, made.file))
    first, out = inputs.folder / "first.npy", made.file.with_name("first.npy")
    np.save(first, inputs.calibration()[:1])
    engine.ask("predict", x=str(first), y=str(out))
    if not np.isfinite(np.load(out)).all():
        raise FailedError("the output is not finite")
    # Before thousands of samples are judged, which take memory of their own.
    entry = {"size_bytes": made.size_bytes, "memory_mb": engine.ask("prepare", x=str(first))["memory_mb"]}
    if candidate.build.partition(":")[0] != "given":
        entry |= {"seconds": made.seconds, "peak_mb": made.peak_mb}
    return entry, engine


def _judge(
    network: Network, module: torch.nn.Module, inputs: Inputs, entries: Entries,
    served: dict[str, Served], most: int | None,
) -> None:  # fmt: skip
    """Add the quality of every file; one that fails on the way is served no more."""
    count = network.judge if most is None else min(most, network.judge)
    samples = network.evaluation(max(count, 1))
    np.save(inputs.folder / "evaluation.npy", samples)
    if not count:
        return
    reference = float_outputs(module, samples)
    labels = network.labels()[:count] if network.labels else None
    entries["float"] = {"quality": quality(reference, reference, labels)}
    for name, engine in list(served.items()):
        out = inputs.folder.parent / f"{name}.npy"
        try:
            engine.ask("predict", x=str(inputs.folder / "evaluation.npy"), y=str(out))
        except PeerError as error:
            entries[name] = {"failed": str(error)}
            del served[name]
            continue
        entries[name]["quality"] = quality(np.load(out).reshape(reference.shape), reference, labels)
        _tell(f"{network.name}: {name} {entries[name]['quality']}")


def _interleaved(served: Mapping[str, Served], inputs: Inputs, rounds: int) -> dict[str, list[float]]:
    """Time the files in turn, as `measure.interleaved` does, each in its own process."""
    sample = inputs.folder / "sample.npy"
    np.save(sample, np.load(inputs.folder / "evaluation.npy")[:1])
    repeats: dict[str, int] = {}
    for name, engine in served.items():
        found = engine.ask("prepare", x=str(sample))
        repeats[name] = max(1, round(SAMPLE_MS / max(found["ms"], 1e-4)))
    times: dict[str, list[float]] = {name: [] for name in served}
    names, generator = list(served), random.Random(0)
    for _ in range(rounds):
        # In no order that repeats: whoever always followed a large neighbour would look slower.
        generator.shuffle(names)
        for name in names:
            times[name].append(served[name].ask("time", repeats=repeats[name])["ms"])
    return times


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
