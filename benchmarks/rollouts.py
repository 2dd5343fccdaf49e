"""How often a rollout is stopped that should not be, and the other way round; a million devices; faults.

`python -m benchmarks.rollouts [--runs 1000] [--workers 2] [--part 500]`. Simulated devices on the real policy, gates
and state machine, with a look after every window. Three truths for each fleet: as good as the operator expects, two
points worse, and exactly at the limit, one point below what is expected. A stop is false where the candidate keeps the
limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.machine import machine
from edgekit.fleet.rules.gates import Limits
from edgekit.fleet.rules.rollouts import LIVE, Plan
from edgekit.fleet.simulate.many import joined, several
from edgekit.fleet.simulate.run import History, run
from edgekit.fleet.simulate.world import FAULTS, Hit, World

RESULT: Final = Path(__file__).parent / "results" / "rollouts.json"
EXPECTED, SLACK, DROP = 0.97, 0.01, 0.02
PLAN: Final = Plan(soak_s=1200, timeout_s=14_400, patience_s=7200, limits=Limits(agreement=EXPECTED - SLACK))
# The fleet, and which part of `--runs` it gets: a larger one takes longer, and varies less.
FLEETS: Final = {5_000: 1.0, 500: 1.0, 100_000: 0.1}
TRUTHS: Final = {
    "as expected": EXPECTED,
    "two points worse": EXPECTED - DROP,
    "at the limit": EXPECTED - SLACK,
}
# Two arms: what a device shows of a candidate that is as the control, that is slower, and that raises more errors.
ARMS: Final = World(
    devices=800, latency_ratio=1.0, errors=0.003, live_errors=0.003, nans=0.001, live_nans=0.001
)
AB: Final = {
    "as the control": ARMS,
    "25% slower": replace(ARMS, latency_ratio=1.25),
    "0.8 points more errors": replace(ARMS, errors=0.009, live_errors=0.001),
}
AB_PLAN: Final = replace(PLAN, mode="ab", limits=Limits())
BAD: Final = {
    "wrong weights": "wrong",
    "swapped labels": "swapped",
    "5 times slower": "slow",
    "crashes on load": "crashing",
    "NaN on some inputs": "nan",
    "drifts on one cohort": "drifting=1@region=eu",
    "falls silent": "silent",
}
BAD_FLEETS: Final = (20, 5_000)
MILLION: Final = 1_000_000
PART: Final = 10


def _part(world: World, plan: Plan, runs: int, seed: int) -> list[Any]:
    return several(world, plan, runs=runs, seed=seed)


def repeated(pool: ProcessPoolExecutor, world: World, runs: int, plan: Plan = PLAN) -> dict[str, Any]:
    """Many rollouts, in parts that the processes share."""
    starts = range(0, runs, PART)
    parts = [pool.submit(_part, world, plan, min(PART, runs - start), 1 + start) for start in starts]
    summary = joined([each for part in parts for each in part.result()])
    return {**summary.to_tree(), "stopped": summary.stopped}


def bad(devices: int, runs: int = 20) -> dict[str, Any]:
    """Each fault: where it is stopped, and what share of the fleet had served it; limits as they are by default."""
    found = {}
    for name, fault in BAD.items():
        world = World(devices=devices, agreement=0.98, spread=0.015, hits=(Hit.parse(fault),))
        found[name] = {
            "what": FAULTS[world.hits[0].fault].says,
            **joined(several(world, replace(PLAN, limits=Limits()), runs=runs, seed=1)).to_tree(),
        }
    return found


def million() -> dict[str, Any]:
    """A million devices in a process of its own: one good rollout, and one that is stopped while half serve it."""
    began = time.monotonic()
    plan = replace(PLAN, soak_s=3600)
    good = run(World(devices=MILLION), plan, seed=1)
    good_s, good_cpu_s = time.monotonic() - began, time.process_time()
    # It is late, so that many serve it by then.
    late = World(devices=MILLION, late_s=20_000, hits=(Hit("drifting"),))
    stopped = run(late, plan, seed=1)
    return {
        "devices": MILLION,
        "state": good.state,
        "looks": len(good.moments),
        "seconds": round(good_s, 1),
        "cpu_seconds": round(good_cpu_s, 1),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        "stages": shares(good),
        "real_windows_merged": good.windows,
        "real_policy_decisions": good.rules,
        "stopped": {
            "state": stopped.state,
            "at": stopped.stopped_at,
            "why": stopped.why,
            "exposed": stopped.exposed,
            "seconds": round(time.monotonic() - began - good_s, 1),
            "run_it_though_they_polled_within_one_interval": stopped.kept,
            "offline_for_that_interval": stopped.away,
        },
    }


def shares(history: History) -> list[dict[str, float]]:
    """Of each stage, in percent: what was asked, what was drawn, and what served it in the end."""
    rows = []
    for stage, asked in enumerate(history.plan.stages):
        last = [each for each in history.moments if each.stage == stage and each.phase == LIVE][-1]
        rows.append(
            {"asked": asked, "drawn": round(100 * last.meant, 4), "serves": round(100 * last.serves, 4)}
        )
    return rows


def main() -> None:
    """Measure, and write the result after each part."""
    names = ("million", "bad", "ab", *map(str, FLEETS))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--part", action="append", choices=names, help="only this; the others are kept")
    parser.add_argument("--here", action="store_true", help="only the million, in this process, as JSON")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(million()))
        return
    before = json.loads(RESULT.read_text(encoding="utf-8")) if options.part else {"fleets": {}}
    result: dict[str, Any] = {
        **before, "machine": machine(), "limit": PLAN.limits.agreement, "alpha": PLAN.limits.alpha,
    }  # fmt: skip

    def keep(said: str) -> None:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(said, flush=True)

    parts = options.part or names
    if "million" in parts:
        alone = [sys.executable, "-m", "benchmarks.rollouts", "--here"]
        result["million"] = json.loads(
            subprocess.run(alone, capture_output=True, text=True, check=True).stdout
        )
        keep("million")
    if "bad" in parts:
        result["bad"] = {str(devices): bad(devices) for devices in BAD_FLEETS}
        keep("bad")
    with ProcessPoolExecutor(options.workers) as pool:
        for name, world in AB.items() if "ab" in parts else ():
            found = repeated(pool, world, options.runs, AB_PLAN)
            result.setdefault("ab", {})[name] = {"devices": world.devices, **found}
            keep(f"A/B {name} {json.dumps(found)}")
        for devices, part in FLEETS.items():
            for truth, agreement in TRUTHS.items() if str(devices) in parts else ():
                runs = max(1, round(options.runs * part))
                found = repeated(pool, World(devices=devices, agreement=agreement), runs)
                result["fleets"].setdefault(str(devices), {})[truth] = found
                keep(f"{devices} {truth} {json.dumps(found)}")


if __name__ == "__main__":
    main()
