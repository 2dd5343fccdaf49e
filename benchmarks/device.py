"""What `edgekit-runtime` costs on a device beside the bare backend, and whether swaps under load lose anything.

`python -m benchmarks.device`. `predict` beside ONNX Runtime's `session.run` and LiteRT's `set_tensor`, `invoke` and
`get_tensor` on the same file, in interleaved rounds on one thread; the import and the memory of a process with a model
beside one with the backend alone; fifty swaps under two threads of predictions; the latency with a candidate in the
shadow beside that without; the size of the wheel.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.compressed import compressed
from benchmarks.data_cifar10 import CACHE
from benchmarks.machine import machine
from benchmarks.measure import interleaved, ratio
from benchmarks.networks import NETWORKS
from edgekit_runtime import Model, Runtime, Shadow
from edgekit_runtime.backends.onnx_sessions import EXACT, saturates
from edgekit_runtime.bundle import Bundle
from edgekit_runtime.contract import Manifest
from edgekit_runtime.events import MarkedGood
from edgekit_runtime.manager import Manager
from edgekit_runtime.store import Store

RESULT = Path(__file__).parent / "results" / "device.json"
MEASURED: Final = ("DS-CNN", "EfficientNet-Lite0")
FORMATS: Final = ("onnx", "tflite")
CALIBRATED: Final = 64
SWAPS, PREDICTIONS = 50, 20_000
PROCESSES: Final = 7
# What a process does before its memory and time are taken; the file comes as the first argument.
BARE: Final = {
    "onnx": "import onnxruntime as o; s = o.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])",
    "tflite": "from ai_edge_litert.interpreter import Interpreter as I\ni = I(sys.argv[1]); i.allocate_tensors()",
}
IMPORTS: Final = (
    "import edgekit_runtime",
    "from edgekit_runtime import Model",
    "from edgekit_runtime import Runtime",
)
# Of a core, for a candidate.
SHARE: Final = 0.25
NEIGHBOUR: Final = """
import os, sys, time
from ai_edge_litert.interpreter import Interpreter
os.nice(19)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
model = Interpreter(sys.argv[1], num_threads=1)
model.allocate_tensors()
print("ready", flush=True)
while True:
    began = time.process_time()
    while time.process_time() < began + 0.005:
        model.invoke()
    time.sleep((time.process_time() - began) * (1 / float(sys.argv[2]) - 1))
"""
OURS: Final = "from edgekit_runtime import Model; m = Model.load(sys.argv[1], format={format!r})"


def bundle_of(name: str) -> Path:
    """A bundle of a network, made once."""
    network = next(each for each in NETWORKS if each.name == name)
    out = CACHE / "device" / name
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        compressed(network.make(), network.calibration(CALIBRATED), out, formats=FORMATS)
    return out


def bare_call(path: Path, form: str, x: Any) -> Callable[[], Any]:
    """One call of the backend alone, as an application without a library would make it."""
    if form == "onnx":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if saturates():
            options.add_session_config_entry(EXACT, "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names, feed = [o.name for o in session.get_outputs()], session.get_inputs()[0].name
        return lambda: session.run(names, {feed: x})[0]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    given, got = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def call() -> Any:
        interpreter.set_tensor(given, x)
        interpreter.invoke()
        return interpreter.get_tensor(got)

    return call


def overhead(bundle: Path, form: str) -> dict[str, float]:
    """`predict` beside the bare backend: milliseconds, their ratio, and what it adds in microseconds."""
    model = Model.load(bundle, format=form)
    shape = [1 if n == -1 else n for n in model.info.inputs[0].shape]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    calls = {"bare": bare_call(bundle / f"model.{form}", form, x), "predict": lambda: model.predict(x)}
    np.testing.assert_array_equal(calls["bare"](), calls["predict"]())
    times = interleaved(calls, rounds=300)
    added = statistics.median(p - b for p, b in zip(times["predict"], times["bare"], strict=True))
    return {
        "bare_ms": round(statistics.median(times["bare"]), 5),
        "ratio": ratio(times["predict"], times["bare"]),
        "added_us": round(1e3 * added, 2),
    }


def process(program: str, *arguments: str) -> tuple[float, int]:
    """Milliseconds and resident bytes of a program at its end."""
    whole = (
        "import time; began = time.perf_counter()\nimport sys, numpy\nafter_numpy = time.perf_counter()\n"
        f"{program}\nended = time.perf_counter()\nimport psutil\n"
        "print(1e3 * (ended - after_numpy), psutil.Process().memory_info().rss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", whole, *arguments], capture_output=True, text=True, check=True
    )
    ms, resident = done.stdout.split()
    return float(ms), int(resident)


def memory(bundle: Path, form: str) -> dict[str, float]:
    """Megabytes that a process takes with a model, more than with the backend and the file alone."""
    rows = [
        (
            process(BARE[form], str(bundle / f"model.{form}"))[1],
            process(OURS.format(format=form), str(bundle))[1],
        )
        for _ in range(PROCESSES)
    ]
    return {"added_mb": round(statistics.median(ours - bare for bare, ours in rows) / 1e6, 2)}


def driven(path: Path, bundles: Mapping[str, Bundle]) -> Manager:
    """The driver of a new store that takes these bundles without trying them out."""
    store = Store(path)
    store.make()
    return Manager(
        store,
        fetch=lambda release: store.add_release(bundles[release].release(), bundles[release].read),
        stage=lambda _: None,
    )


def swaps(first: Path, second: Path) -> dict[str, Any]:
    """Swaps while two threads predict: what failed, what mixed, and the memory before and after."""
    bundles = {bundle.release().id: bundle for bundle in map(Bundle.open, (first, second))}
    x = np.random.default_rng(0).normal(size=(1, *bundles_shape(first)[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        manager = driven(Path(folder) / "store", bundles)

        def serve(release: str) -> None:
            manager.install(release, forced=True)
            manager.tell(MarkedGood(release))
            manager.go_on()

        for release in bundles:
            serve(release)
        known = [Model.load(bundle.path).predict(x) for bundle in bundles.values()]
        counts, failed, mixed, stop = [0, 0], [0, 0], [0, 0], threading.Event()
        with Runtime(manager.store.path, poll_s=3600) as runtime:

            def load(k: int) -> None:
                while not stop.is_set() or counts[k] < PREDICTIONS // 2:
                    try:
                        found = runtime.predict(x)
                    except Exception:  # noqa: BLE001 - counted: there must be none
                        failed[k] += 1
                        continue
                    counts[k] += 1
                    mixed[k] += not any(np.array_equal(found, each) for each in known)

            threads = [threading.Thread(target=load, args=(k,)) for k in range(2)]
            for each in threads:
                each.start()
            resident = []
            order = list(bundles)
            for number in range(SWAPS):
                serve(order[number % 2])
                if not runtime.look():
                    raise RuntimeError("the runtime did not follow the store")
                resident.append(psutil.Process().memory_info().rss)
            stop.set()
            for each in threads:
                each.join()
    return {
        "swaps": SWAPS,
        "predictions": sum(counts),
        "failed": sum(failed),
        "mixed": sum(mixed),
        "resident_mb": [round(resident[4] / 1e6, 1), round(resident[-1] / 1e6, 1)],
    }


def shadow(first: Path, second: Path, *, blocks: int = 20, block_s: float = 3.0) -> dict[str, Any]:
    """Latency of the live version with a candidate in the shadow at a quarter of a core, beside the same without.

    Blocks of predictions take turns: with the candidate; without; and without it, but with a process that has nothing
    to do with edgekit and runs the same file on the bare backend for the same share of a core. What such a neighbour
    costs, whoever it is, is the hardware's: caches and memory that both share.
    """
    bundles = {bundle.release().id: bundle for bundle in map(Bundle.open, (first, second))}
    x = np.random.default_rng(0).normal(size=(1, *bundles_shape(first)[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, neighbour(second) as stranger:
        manager = driven(Path(folder) / "store", bundles)
        live, candidate = bundles
        manager.install(live)
        manager.tell(MarkedGood(live))
        manager.go_on()
        manager.install(candidate, shadow=True)
        with Runtime(manager.store.path, poll_s=3600, shadow=Shadow(rate=1.0, cpu_share=SHARE)) as runtime:
            before = {each.pid for each in psutil.Process().children()}
            runtime.look()
            (worker,) = (each for each in psutil.Process().children() if each.pid not in before)
            while runtime.shadow is None or not runtime.shadow.compared:
                runtime.predict(x)
            awake: dict[str, psutil.Process | None] = {"on": worker, "off": None, "neighbour": stranger}
            times: dict[str, list[float]] = {part: [] for part in awake}
            used_s = dict.fromkeys(("on", "neighbour"), 0.0)
            worker.suspend()
            for number in range(len(awake) * blocks):
                part = list(awake)[number % len(awake)]
                runs = awake[part]
                if runs:
                    runs.resume()
                    used_s[part] -= cpu_s(runs)
                end = time.perf_counter() + block_s
                while time.perf_counter() < end:
                    began = time.perf_counter()
                    runtime.predict(x)
                    times[part].append(1e3 * (time.perf_counter() - began))
                if runs:
                    used_s[part] += cpu_s(runs)
                    runs.suspend()
            worker.resume()
            compared = runtime.shadow.compared
    found = {q: {part: float(np.percentile(ms, q)) for part, ms in times.items()} for q in (50, 99)}
    return {
        "predictions": {part: len(ms) for part, ms in times.items()},
        "compared": compared,
        "cpu_share": {part: round(each / (blocks * block_s), 3) for part, each in used_s.items()},
        **{f"p{q}_ms": {part: round(ms, 4) for part, ms in each.items()} for q, each in found.items()},
        **{f"p{q}_ratio": round(each["on"] / each["off"], 4) for q, each in found.items()},
        **{f"p{q}_ratio_neighbour": round(each["neighbour"] / each["off"], 4) for q, each in found.items()},
    }


def cpu_s(process: psutil.Process) -> float:
    """Seconds of processor time that a process has taken."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def neighbour(bundle: Path) -> Iterator[psutil.Process]:
    """A process that runs a file on the bare backend for `SHARE` of a core at the lowest priority; suspended."""
    file = Bundle.open(bundle).path / "model.tflite"
    with subprocess.Popen(
        [sys.executable, "-c", NEIGHBOUR, str(file), str(SHARE)], stdout=subprocess.PIPE
    ) as made:
        assert made.stdout is not None
        made.stdout.readline()
        process = psutil.Process(made.pid)
        process.suspend()
        try:
            yield process
        finally:
            process.resume()
            process.kill()


def bundles_shape(path: Path) -> tuple[int, ...]:
    """Shape of the first input."""
    return Bundle.open(path).manifest.inputs[0].shape


def twin(bundle: Path) -> Path:
    """The same files as another version."""
    out = Path(tempfile.mkdtemp()) / "twin"
    shutil.copytree(bundle, out)
    manifest = Manifest.from_json((out / "manifest.json").read_bytes())
    (out / "manifest.json").write_text(replace(manifest, version="twin").to_json(), encoding="utf-8")
    return out


def wheel_kb() -> float:
    """Kilobytes of the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, "./runtime"]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True)
        (wheel,) = Path(folder).glob("*.whl")
        return round(wheel.stat().st_size / 1e3, 1)


def main() -> int:
    """Exit status 0; the figures are printed and kept."""
    found: dict[str, Any] = {"machine": machine(), "wheel_kb": wheel_kb()}
    found["import_ms"] = {
        program: round(statistics.median(process(program)[0] for _ in range(PROCESSES)), 2)
        for program in IMPORTS
    }
    for name in MEASURED:
        bundle = bundle_of(name)
        found[name] = {form: {**overhead(bundle, form), **memory(bundle, form)} for form in FORMATS}
        print(name, json.dumps(found[name]), flush=True)
    small = bundle_of(MEASURED[0])
    other = Path(tempfile.mkdtemp()) / "other"
    network = next(each for each in NETWORKS if each.name == MEASURED[0])
    compressed(network.make(), network.calibration(CALIBRATED // 2), other, formats=("tflite",))
    found["swaps"] = swaps(small, other)
    large = bundle_of(MEASURED[1])
    found["shadow"] = {MEASURED[0]: shadow(small, other), MEASURED[1]: shadow(large, twin(large))}
    RESULT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "machine"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
