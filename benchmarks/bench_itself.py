"""`edgekit bench` beside plain loops of the bare runtimes, and on a machine that is kept busy.

`python -m benchmarks.bench_itself ["DS-CNN onnx x1" ...]`. For each file a process with a loop of `session.run` or
`invoke`, and the harness of `edgekit bench`, take turns; the figure is the median of the ratios of their medians. Then
two files against each other, one of them twice, at rest and twice beside programs that burn: whether the noise is said
and the verdicts stay.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.device import bundle_of
from benchmarks.machine import machine
from edgekit.bench.command import LOCAL, Outcome, measure_all, spec_of
from edgekit.bench.results import ModelFile, Spec
from edgekit.bench.targets import local, silent
from edgekit_runtime.backends.onnx_sessions import saturates

RESULT = Path(__file__).parent / "results" / "bench.json"
MEASURED: Final = ("DS-CNN", "ResNet-20", "MobileNetV2", "EfficientNet-Lite0")
FORMATS: Final = ("onnx", "tflite")
THREADS: Final = (1, 2)
# Many short turns: what a process finds when it starts differs more than what it sees in a second. There are as many
# as it takes to know their median this well, 19 times of 20: a few where nothing else runs, and many where neighbours
# share the processor's caches, or there are as many threads as processors.
FEWEST_PAIRS, MOST_PAIRS = 11, 151
KNOWN: Final = 0.015
SECONDS: Final = 0.5
BURNERS: Final = 2
BURN: Final = "while True: pass"
# What anybody would write; arguments are the file, the threads, the seconds, and "exact" where kernels clip.
PLAIN: Final = {
    "onnx": """
import sys, time, numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.inter_op_num_threads = int(sys.argv[2]), 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
if sys.argv[4] == "exact":
    options.add_session_config_entry("session.x64quantprecision", "1")
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
given = session.get_inputs()[0]
shape = [n if isinstance(n, int) else 1 for n in given.shape]
feed = {given.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
names = [each.name for each in session.get_outputs()]
def call():
    session.run(names, feed)
""",
    "tflite": """
import sys, time, numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=int(sys.argv[2]))
interpreter.allocate_tensors()
given = interpreter.get_input_details()[0]
x = np.random.default_rng(0).standard_normal(given["shape"]).astype(np.float32)
interpreter.set_tensor(given["index"], x)
def call():
    interpreter.invoke()
""",
}
LOOP: Final = """
for _ in range(10):
    call()
took, end = [], time.perf_counter() + float(sys.argv[3])
while time.perf_counter() < end:
    began = time.perf_counter()
    call()
    took.append(time.perf_counter() - began)
print(1e3 * float(np.median(took)))
"""


def plain_ms(path: Path, threads: int) -> float:
    """Median of a loop without anything around it, in milliseconds."""
    program = PLAIN[path.suffix.removeprefix(".")] + LOOP
    done = subprocess.run(
        # Kernels that clip would be compared with kernels that do not.
        [
            sys.executable,
            "-c",
            program,
            str(path),
            str(threads),
            str(SECONDS),
            "exact" if saturates() else "",
        ],
        capture_output=True,
        text=True,
        check=True,
        # As the harness: Linux shares processors between sessions before it does between processes.
        start_new_session=True,
    )
    return float(done.stdout)


def bench_ms(path: Path, threads: int) -> float:
    """Median of `edgekit bench`, in milliseconds."""
    spec = Spec((ModelFile(path.name, str(path)),), threads=(threads,), seconds=SECONDS, cold_starts=0)
    (run,) = local.measure(spec).runs
    return run.latency_ms.p50


def surely(values: list[float]) -> tuple[float, float]:
    """Between which the median of what was drawn from lies, 19 times of 20: order statistics, by the normal limit."""
    ranked, n = sorted(values), len(values)
    aside = max(0, math.floor(n / 2 - 1.96 * math.sqrt(n) / 2))
    return ranked[aside], ranked[n - 1 - aside]


def beside_loops(path: Path, threads: int) -> dict[str, Any]:
    """Both in turn; who comes first changes from pair to pair."""
    pairs: list[tuple[float, float]] = []
    for number in range(MOST_PAIRS):
        found = {}
        for measure in (plain_ms, bench_ms)[:: 1 if number % 2 else -1]:
            found[measure.__name__] = measure(path, threads)
        pairs.append((found["bench_ms"], found["plain_ms"]))
        low, high = surely([ours / theirs for ours, theirs in pairs])
        if len(pairs) >= FEWEST_PAIRS and high - low <= 2 * KNOWN:
            break
    return {
        "pairs": len(pairs),
        "bench_ms": round(statistics.median(ours for ours, _ in pairs), 5),
        "plain_ms": round(statistics.median(theirs for _, theirs in pairs), 5),
        "ratio": round(statistics.median(ours / theirs for ours, theirs in pairs), 4),
        "surely": [round(low, 4), round(high, 4)],
        "lowest": round(min(ours / theirs for ours, theirs in pairs), 4),
        "highest": round(max(ours / theirs for ours, theirs in pairs), 4),
    }


@contextmanager
def burning(programs: int) -> Iterator[None]:
    """Keep processors busy meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(programs)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def when_busy(paths: list[Path]) -> dict[str, Any]:
    """Warnings and verdicts at rest, and twice while others burn."""
    spec = spec_of(paths, seconds=5.0)

    def short(text: str) -> str:
        # The same file twice is told apart by its folder, which says nothing elsewhere.
        return text.replace(f"{paths[0].parent}/", "again: ")

    def told(outcome: Outcome) -> dict[str, Any]:
        result = outcome.results[0]
        return {
            "p50_ms": {short(run.title): run.latency_ms.p50 for run in result.runs},
            "warnings": [short(each) for each in outcome.warnings[0]],
            "verdicts": [short(str(each)) for each in outcome.comparisons[0]],
            "verdict": [each.verdict for each in outcome.comparisons[0]],
        }

    def measure() -> dict[str, Any]:
        return told(measure_all(spec, [LOCAL], spec.files[0].name, lambda _: silent))

    found = {"at rest": measure()}
    for turn in ("busy", "busy again"):
        with burning(BURNERS):
            found[turn] = measure()
    return {
        **found,
        "noise is said": all(found[turn]["warnings"] for turn in ("busy", "busy again")),
        "verdicts stay": len({tuple(each["verdict"]) for each in found.values()}) == 1,
    }


def main(only: list[str]) -> int:
    """Exit status 0 where the medians are within 3% and noise changes no verdict; figures are printed and kept.

    Args:
        only: such as "DS-CNN onnx x1", loops to measure anew; all else stays as it was kept. Empty measures everything.
    """
    found: dict[str, Any] = json.loads(RESULT.read_text()) if only else {"loops": {}, "busy": {}}
    found["machine"] = machine()
    for name in MEASURED:
        for form, threads in itertools.product(FORMATS, THREADS):
            key = f"{name} {form} x{threads}"
            if not only or key in only:
                found["loops"][key] = beside_loops(bundle_of(name) / f"model.{form}", threads)
                print(key, json.dumps(found["loops"][key]), flush=True)
    for name in () if only else MEASURED:
        bundle = bundle_of(name)
        files = [bundle / "model.onnx", bundle / "model.onnx", bundle / "model.tflite"]
        found["busy"][name] = when_busy(files)
        print(name, json.dumps(found["busy"][name], indent=1), flush=True)
    worst = max(abs(each["ratio"] - 1) for each in found["loops"].values())
    found["worst"] = round(worst, 4)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    stays = all(each["noise is said"] and each["verdicts stay"] for each in found["busy"].values())
    print(f"worst difference of medians: {worst:.1%}; noise said and verdicts the same: {stays}")
    return int(worst > 0.03 or not stays)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
