"""Measures model files on the machine that it runs on: `python harness.py < SPEC.json > RESULT.json`.

One file, so that a device takes it as it is: Python 3.10, numpy, `edgekit_runtime` and a backend are all it needs.
`edgekit.bench.results` describes SPEC and RESULT. What is timed is the bare call of the runtime, its inputs in place.
The method is the single stream of MLPerf Inference: one call after the other, after a warm-up, for a least time, and a
percentile only from calls enough for it. Files take turns, round by round, so that drift of the machine falls on all.

Progress goes to stderr, a JSON object a line. SIGINT and SIGTERM end the measuring; what is there by then is written.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.backends import BACKENDS, import_backend
from edgekit_runtime.bundle import Bundle
from edgekit_runtime.errors import DeviceError
from edgekit_runtime.shadow.budget import hottest_celsius

SCHEMA: Final = 1
# A round of a contender: long enough that the neighbour's weights in the caches do not matter, short enough that all
# contenders see the same state of the machine. A slow contender's single call draws the others' rounds out.
SLICE_NS, LONGEST_SLICE_NS = 10_000_000, 100_000_000
MOST_CALLS, MOST_ROUNDS = 2_000, 2_000
# Where rounds are slow: how many times `seconds` may pass before `min_rounds` are done, and what is run in any case.
PATIENCE, LEAST_ROUNDS = 4.0, 5
# Fewest calls for a percentile q by MLPerf's early stopping with one outlier: P(Binomial(n, 1 − q) ≤ 1) ≤ 1%.
ENOUGH: Final = {50: 5, 90: 64, 99: 662}
# Calls before a process's memory is taken, and how long it may need for all.
SETTLING_CALLS, PROBE_S = 10, 600.0
ENERGY_S, POWER_EVERY_S, LOOK_EVERY_S, WINDOW_S = 1.0, 0.02, 0.5, 1.0
DEFAULTS: Final[Mapping[str, Any]] = {
    "threads": [1], "batches": [1], "seconds": 5.0, "min_rounds": 50, "warmup": 10, "seed": 0, "sustained_s": 0.0,
    "cold_starts": 3, "alone": True,
}  # fmt: skip
# Of a file that no fresh process opened.
UNKNOWN_ALONE: Final = {
    "load_ms": None, "cold_start_ms": None, "memory_mb": {"steady": None, "peak": None, "before": None},
}  # fmt: skip
SYS, PROC = Path("/sys"), Path("/proc")
# Extensions that decide which integer kernels a runtime picks, x86 and ARM names.
EXTENSIONS: Final = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "neon", "asimdhp", "asimddp",
    "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
# Arm names no processor in /proc/cpuinfo; (implementer, part) of MIDR_EL1, from Arm's reference manuals.
PARTS: Final = {
    ("0x41", "0xb76"): "ARM1176", ("0x41", "0xc07"): "Cortex-A7", ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35", ("0x41", "0xd05"): "Cortex-A55", ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd0b"): "Cortex-A76", ("0x41", "0xd0c"): "Neoverse N1",
    ("0x41", "0xd40"): "Neoverse V1", ("0x41", "0xd42"): "Cortex-A78AE", ("0x41", "0xd49"): "Neoverse N2",
    ("0x4e", "0x004"): "Carmel",
}  # fmt: skip
DISTRIBUTIONS: Final = (
    "onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "tflite-runtime", "edgekit-runtime", "numpy",
)  # fmt: skip
# Rails that carry the whole board; without one, the rails of all INA chips are added up.
WHOLE_BOARD: Final = ("VDD_IN", "POM_5V_IN")

Array = NDArray[Any]
Shape = tuple[int, ...]
Tree = dict[str, Any]
T = TypeVar("T")


# The machine, from what the system tells in files


def read(path: Path) -> str:
    """Text of a file of the system without what ends it, "" where there is none or only root may read it."""
    try:
        return path.read_text("utf-8", "replace").strip(" \t\n\0")
    except OSError:
        return ""


def number(path: Path) -> float | None:
    """The number in a file of the system, None where there is none."""
    try:
        return float(read(path))
    except ValueError:
        return None


def temperature_c(sys_root: Path = SYS) -> float | None:
    """Degrees Celsius of the hottest thermal zone, None where the system has none that can be read."""
    return hottest_celsius(sys_root / "class/thermal")


def clock_mhz(sys_root: Path = SYS, proc_root: Path = PROC) -> float | None:
    """Mean clock of the first processors in MHz: as cpufreq has it, else as /proc/cpuinfo."""
    cores = [sys_root / f"devices/system/cpu/cpu{k}/cpufreq/scaling_cur_freq" for k in range(8)]
    found = [each / 1e3 for each in map(number, cores) if each]
    if not found:
        found = [float(f) for f in re.findall(r"^cpu MHz\s*: ([\d.]+)$", read(proc_root / "cpuinfo"), re.M)]
    return float(np.mean(found)) if found else None


def cpu_times(stat: str) -> tuple[float, float, float] | None:
    """Ticks of all processors since boot, of /proc/stat (proc_stat(5)): all, busy and stolen."""
    line = re.match(r"cpu +([\d ]+)", stat)
    if line is None:
        return None
    ticks = [float(each) for each in line[1].split()]
    user, nice, system, idle, iowait, irq, softirq, steal = (ticks + [0.0] * 8)[:8]
    busy = user + nice + system + irq + softirq
    return busy + idle + iowait + steal, busy, steal


def memory_mb(status: str) -> tuple[float | None, float | None]:
    """Resident memory and its peak, of /proc/PID/status, in 10^6 bytes."""
    found = {key: float(kib) * 1024 / 1e6 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", status, re.M)}
    resident, peak = found.get("VmRSS"), found.get("VmHWM")
    return resident, max(peak, resident) if peak is not None and resident is not None else peak


def cpu_name(cpuinfo: str) -> str:
    """Name of the processor, "" where the text has none; several kinds of cores are joined."""
    named = re.search(r"^model name\s*: (.+)$", cpuinfo, re.M)
    # 32-bit Arm systems put only the architecture here.
    if named and not named[1].startswith("ARMv"):
        return named[1].strip()
    implementers = re.findall(r"^CPU implementer\s*: (\S+)$", cpuinfo, re.M)
    parts = re.findall(r"^CPU part\s*: (\S+)$", cpuinfo, re.M)
    kinds = dict.fromkeys(zip(implementers, parts, strict=False))
    return " + ".join(PARTS.get(kind, f"part {kind[1]} of implementer {kind[0]}") for kind in kinds)


def isa_of(cpuinfo: str) -> list[str]:
    """Extensions of the processor that matter here."""
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", cpuinfo, re.M)
    there = set(flags[1].split()) if flags else set()
    return [each for each in EXTENSIONS if each in there]


def machine(meter: Meter | str, sys_root: Path = SYS, proc_root: Path = PROC) -> Tree:
    """Describe this machine; `meter` is what energy is read from, or why it is not."""
    cpuinfo = read(proc_root / "cpuinfo")
    total = re.search(r"^MemTotal:\s+(\d+) kB$", read(proc_root / "meminfo"), re.M)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    boards = (proc_root / "device-tree/model", sys_root / "class/dmi/id/product_name")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": cpu_name(cpuinfo) or platform.processor() or platform.machine(),
        "cores": cores,
        "isa": isa_of(cpuinfo),
        "memory_mb": round(float(total[1]) * 1024 / 1e6, 1) if total else None,
        "python": platform.python_version(),
        "runtimes": {name: version for name in DISTRIBUTIONS if (version := version_of(name))},
        "governor": read(sys_root / "devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "model": next(filter(None, map(read, boards)), ""),
        "energy": meter if isinstance(meter, str) else meter.source,
    }


def version_of(name: str) -> str:
    """Version of a distribution, "" where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


# Energy


@dataclass(frozen=True)
class Meter:
    """What energy is read from: a counter in millijoules that only rises, or a power in milliwatts."""

    source: str
    counter_mj: Callable[[], float] | None = None
    power_mw: Callable[[], float] | None = None


def find_meter(sys_root: Path = SYS) -> Meter | str:
    """RAPL, else the INA sensors of a board, else why there is neither."""
    packages = [
        zone
        for zone in sorted((sys_root / "class/powercap").glob("intel-rapl:*"))
        if zone.name.count(":") == 1 and read(zone / "name").startswith("package")
    ]
    if packages and all(number(zone / "energy_uj") is not None for zone in packages):
        rings = [Ring(number(zone / "max_energy_range_uj") or 2.0**32) for zone in packages]

        def counter_mj() -> float:
            pairs = zip(rings, packages, strict=True)
            return sum(ring.total(number(zone / "energy_uj") or 0.0) for ring, zone in pairs) / 1e3

        return Meter(f"RAPL, {len(packages)} package(s)", counter_mj=counter_mj)
    rails = power_rails(sys_root)
    if rails:
        chosen = {name: rail for name, rail in rails.items() if name in WHOLE_BOARD} or rails
        return Meter(f"INA, {' + '.join(chosen)}", power_mw=lambda: sum(map(rail_mw, chosen.values())))
    return "none: only root may read RAPL here" if packages else "none: no RAPL and no INA sensor"


class Ring:
    """A counter that begins anew at its range (the powercap framework of Linux, `max_energy_range_uj`)."""

    def __init__(self, size: float) -> None:
        self.size, self.last, self.turns = size, -math.inf, 0

    def total(self, value: float) -> float:
        """The value as it would be without a range."""
        self.turns += value < self.last
        self.last = value
        return value + self.turns * self.size


def power_rails(sys_root: Path) -> dict[str, tuple[Path, ...]]:
    """Rails of INA chips: label to one file in µW or mW, or to a voltage in mV and a current in mA."""
    rails: dict[str, tuple[Path, ...]] = {}
    for chip in sorted((sys_root / "class/hwmon").glob("hwmon*")):
        if not read(chip / "name").startswith("ina"):
            continue
        for place in ("1", "2", "3", "4"):
            label = read(chip / f"in{place}_label") or f"{read(chip / 'name')} {chip.name} {place}"
            power = chip / f"power{place}_input"
            pair = (chip / f"in{place}_input", chip / f"curr{place}_input")
            if number(power) is not None:
                rails[label] = (power,)
            elif all(number(file) is not None for file in pair):
                rails[label] = pair
    for file in sorted((sys_root / "bus/i2c/drivers/ina3221x").glob("*/iio:device*/in_power*_input")):
        place = file.name.removeprefix("in_power").removesuffix("_input")
        if number(file) is not None:
            rails[read(file.with_name(f"rail_name_{place}")) or str(file)] = (file,)
    return rails


def rail_mw(files: tuple[Path, ...]) -> float:
    """Milliwatts of a rail: hwmon gives µW, or mV and mA; the older driver of Jetsons gives mW."""
    values = [number(file) or 0.0 for file in files]
    if len(values) == 2:
        return values[0] * values[1] / 1e3
    return values[0] if files[0].name.startswith("in_power") else values[0] / 1e3


def energy_mj(call: Callable[[], object], meter: Meter, seconds: float) -> float:
    """Millijoules of one call, of the whole machine while nothing else runs: calls without pauses for some seconds."""
    powers, calls, looked = list[float](), 0, -math.inf
    started = time.perf_counter()
    before = meter.counter_mj() if meter.counter_mj else 0.0
    while (passed := time.perf_counter() - started) < seconds or not calls:
        if meter.power_mw and passed - looked >= POWER_EVERY_S:
            powers.append(meter.power_mw())
            looked = passed
        call()
        calls += 1
    if meter.counter_mj:
        return (meter.counter_mj() - before) / calls
    return float(np.mean(powers)) * (time.perf_counter() - started) / calls


# A file as a call without arguments


class SkipError(Exception):
    """What was asked for does not fit the file; the message says why."""


@dataclass(frozen=True)
class Opened:
    """A file that is ready: `call` runs it once on inputs that are in place."""

    call: Callable[[], object]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One file with one number of threads and one batch."""

    name: str
    path: str
    format: str
    threads: int
    batch: int

    @property
    def title(self) -> str:
        """For people: the name of a file says its format already."""
        return self.name if self.name.endswith(f".{self.format}") else f"{self.name} {self.format}"

    def open(self, seed: int) -> Opened:
        """Open the file in its runtime.

        Raises:
            SkipError: its batch is fixed at another number.
            Exception: whatever the runtime raises.
        """
        return OPENERS[self.format](Path(self.path), self.threads, self.batch, seed)


def open_onnx(path: Path, threads: int, batch: int, seed: int) -> Opened:
    """Open a `.onnx` file with the settings of `edgekit_runtime`."""
    from edgekit_runtime.backends.onnx import DTYPES, PREFERRED
    from edgekit_runtime.backends.onnx_sessions import open_session, session_options

    ort = import_backend(BACKENDS["onnx"])
    there = ort.get_available_providers()
    session = open_session(path, session_options(threads), [p for p in PREFERRED if p in there])
    ports = session.get_inputs()
    shapes, notes = with_batch(
        [tuple(n if isinstance(n, int) else -1 for n in p.shape) for p in ports], batch
    )
    generator = np.random.default_rng(seed)
    feeds = {
        port.name: draw(generator, shape, np.dtype(DTYPES[port.type]))
        for port, shape in zip(ports, shapes, strict=True)
    }
    if (provider := session.get_providers()[0]) != "CPUExecutionProvider":
        notes = (*notes, f"ran on {provider}")
    return Opened(partial(session.run, [each.name for each in session.get_outputs()], feeds), notes)


def open_tflite(path: Path, threads: int, batch: int, seed: int) -> Opened:
    """Open a `.tflite` file in LiteRT with XNNPACK, as `edgekit_runtime` does."""
    module = import_backend(BACKENDS["tflite"])
    with path.open("rb") as file:
        if (head := file.read(8))[4:8] != b"TFL3":
            # A file without the identifier can bring the C++ interpreter down, so it is not even tried.
            raise ValueError(f"begins with {head!r}, without the identifier TFL3 of TFLite")
    interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
    details = interpreter.get_input_details()
    shapes, notes = with_batch([_signature(detail) for detail in details], batch)
    for detail, shape in zip(details, shapes, strict=True):
        if tuple(detail["shape"]) != shape:
            interpreter.resize_tensor_input(detail["index"], shape, strict=True)
    interpreter.allocate_tensors()
    generator = np.random.default_rng(seed)
    # The arena keeps graph inputs alive, so they hold their values over all invocations.
    for detail, shape in zip(details, shapes, strict=True):
        interpreter.set_tensor(detail["index"], draw(generator, shape, np.dtype(detail["dtype"])))
    return Opened(interpreter.invoke, notes)


OPENERS: Final[Mapping[str, Callable[[Path, int, int, int], Opened]]] = {
    "onnx": open_onnx,
    "tflite": open_tflite,
}


def _signature(detail: Tree) -> Shape:
    shape = tuple(int(n) for n in detail["shape"])
    free = tuple(int(n) for n in detail.get("shape_signature", ()))
    return free if len(free) == len(shape) else shape


def with_batch(shapes: Sequence[Shape], batch: int) -> tuple[list[Shape], tuple[str, ...]]:
    """Put the batch where shapes leave their first axis open, and one where they leave another open.

    Args:
        shapes: of all inputs, -1 for an axis that is open.
        batch: samples a call.

    Returns:
        The shapes, and what a reader should know.

    Raises:
        SkipError: no first axis is open, and the batch is another.
    """
    is_open = any(shape and shape[0] < 1 for shape in shapes)
    fixed = max((shape[0] for shape in shapes if len(shape) > 1), default=1)
    notes: tuple[str, ...] = ()
    if not is_open and fixed != batch:
        if batch != 1:
            raise SkipError(f"batch {batch}: the file's batch is fixed at {fixed}")
        notes = (f"its first axis is fixed at {fixed}: figures are of such a call",)
    return [tuple(n if n > 0 else 1 if k else batch for k, n in enumerate(s)) for s in shapes], notes


def draw(generator: np.random.Generator, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Draw an input that any model of this signature takes: wide integers are indices and stay at 0 or 1."""
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    if dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    return generator.integers(0, 2, shape).astype(dtype)


def files_of(file: Tree) -> list[tuple[str, str]]:
    """(format, path) of what a file of the spec stands for: itself, or the files of a bundle.

    Raises:
        ValueError: there is nothing in it that can be measured here.
        DeviceError: it is a directory, and no bundle.
    """
    path, wanted = Path(file["path"]), file.get("format")
    if path.is_dir():
        bundle = Bundle.open(path)
        # What cannot be measured here need not lie here.
        named = [a for a in bundle.manifest.artifacts if a.format in OPENERS and wanted in (None, a.format)]
        found = [(a.format, str(bundle.locate(a.file))) for a in named]
    elif path.exists():
        format = wanted or path.suffix.removeprefix(".")
        found = [(format, str(path))] if format in OPENERS else []
    else:
        raise ValueError(f"{path}: no such file")
    if not found:
        raise ValueError(f"{path}: has no {wanted or ' and no '.join(OPENERS)} file")
    return found


# A fresh process for each: what it takes to open a file, and whether it survives it


def open_alone(out: int) -> int:
    """Do what the parent asks on stdin in this fresh process, and tell it line by line."""
    asked = json.loads(sys.stdin.readline())
    job = Job(**asked["job"])
    try:
        import_backend(BACKENDS[job.format])
        before, _ = memory_mb(read(PROC / "self/status"))
        began = time.perf_counter()
        opened = job.open(asked["seed"])
        load_ms = 1e3 * (time.perf_counter() - began)
        opened.call()
        _say(out, {"first": True})
        for _ in range(asked["calls"]):
            opened.call()
    except SkipError as skip:
        _say(out, {"skip": str(skip)})
        return 0
    except Exception as error:  # noqa: BLE001 - every runtime has exceptions of its own
        _say(out, {"error": first_line(error)})
        return 1
    steady, peak = memory_mb(read(PROC / "self/status"))
    memory = {"steady": steady, "peak": peak, "before": before}
    rounded = {key: value and round(value, 3) for key, value in memory.items()}
    _say(out, {"load_ms": round(load_ms, 3), "memory_mb": rounded, "notes": opened.notes})
    return 0


def first_line(error: Exception) -> str:
    """What an error says, as one line."""
    what = error.what if isinstance(error, DeviceError) else str(error)
    return (what.strip().splitlines() or [type(error).__name__])[0][:300]


def probe(job: Job, seed: int, calls: int) -> Tree:
    """Open a file in a fresh process.

    Returns:
        What `open_alone` told, and `cold_start_ms`; or `skip` or `error` with the reason.
    """
    # Python 3.11 has -P: what lies beside this file is nobody's module.
    flags = ["-P"] if getattr(sys.flags, "safe_path", False) else []
    began = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - this very file, by this very interpreter
        [sys.executable, *flags, str(Path(__file__).resolve()), "--open"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(PROBE_S, process.kill)
        # Ctrl-C may come before anybody would cancel it, and then this process would wait for it at its end.
        late.daemon = True
        told: Tree = {}
        words: deque[str] = deque(maxlen=3)
        try:
            late.start()
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps({"job": asdict(job), "seed": seed, "calls": calls}) + "\n")
                process.stdin.flush()
            for line in process.stdout:
                if not line.startswith(MARK):
                    words.extend([line.strip()[:200]] if line.strip() else [])
                    continue
                news = json.loads(line.removeprefix(MARK))
                if "first" in news:
                    told["cold_start_ms"] = 1e3 * (time.perf_counter() - began)
                else:
                    told |= news
        except BaseException:
            process.kill()
            raise
        finally:
            late.cancel()
    if process.returncode and "error" not in told:
        told = {"error": _ended(process.returncode, words)}
    return told


# Lines of ours among those that a runtime writes.
MARK: Final = "edgekit-harness "


def _say(out: int, news: Tree) -> None:
    os.write(out, f"\n{MARK}{json.dumps(news)}\n".encode())


def _ended(code: int, words: Sequence[str]) -> str:
    said = f" ({' / '.join(words)})" if words else ""
    if code < 0:
        with suppress(ValueError):
            return f"opening and running it ended the process with {signal.Signals(-code).name}{said}"
    return f"opening and running it ended the process with status {code}{said}"


# Rounds


def turn(items: Sequence[T], index: int) -> list[T]:
    """Rotate the start each round and turn the direction each cycle: nobody always follows the same."""
    start = index % len(items)
    rotated = [*items[start:], *items[:start]]
    return rotated[::-1] if (index // len(items)) % 2 else rotated


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python's garbage collector from running meanwhile."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass
class Contender:
    """A file under measurement.

    Attributes:
        job: what it is.
        opened: the file.
        alone: what `probe` told of it.
        calls: of a slice.
        took_ns: every call.
        rounds_ns: median of each slice.
    """

    job: Job
    opened: Opened
    alone: Tree
    calls: int = 1
    took_ns: array[float] = field(default_factory=lambda: array("d"))
    rounds_ns: list[float] = field(default_factory=list)

    def warm_up(self, calls: int) -> float:
        """Nanoseconds of the fastest of some calls."""
        return max(1.0, min(slice_ns(self.opened.call, calls)))

    def go(self, *, among_others: bool) -> None:
        """Run one slice."""
        if among_others and self.calls > 1:
            self.opened.call()  # the caches hold the neighbour's weights
        took = slice_ns(self.opened.call, self.calls)
        self.took_ns.extend(took)
        self.rounds_ns.append(float(np.median(took)))


def slice_ns(call: Callable[[], object], calls: int) -> list[int]:
    """Nanoseconds of each of some calls, one right after the other."""
    clock = time.perf_counter_ns
    took = [0] * calls
    last = clock()
    for k in range(calls):
        call()
        now = clock()
        took[k] = now - last
        last = now
    return took


def run_rounds(contenders: Sequence[Contender], spec: Tree, look: Callable[[float], None]) -> None:
    """Let contenders take turns, until each had its least time and the least number of rounds is done.

    Args:
        contenders: are filled.
        spec: the settings.
        look: called after each round with the seconds since the first began.
    """
    budget_s = spec["seconds"] * len(contenders)
    fastest = [each.warm_up(spec["warmup"]) for each in contenders]
    least_ns = max(SLICE_NS, 1e9 * spec["seconds"] / MOST_ROUNDS)
    slice_of = min(max(least_ns, *fastest), max(least_ns, LONGEST_SLICE_NS))
    for each, one_ns in zip(contenders, fastest, strict=True):
        each.calls = min(MOST_CALLS, math.ceil(slice_of / one_ns))
    started = time.perf_counter()
    for index in count():
        passed = time.perf_counter() - started
        if passed >= budget_s and index >= min(spec["min_rounds"], MOST_ROUNDS):
            return
        if passed >= PATIENCE * budget_s and index >= LEAST_ROUNDS:
            return
        for each in turn(contenders, index):
            each.go(among_others=len(contenders) > 1)
        look(time.perf_counter() - started)


def percentiles(took_ns: Array) -> tuple[dict[str, float | None], list[str]]:
    """Percentiles of calls in milliseconds, None where calls are too few, and a note on those."""
    found: dict[str, float | None] = {}
    notes = []
    for q, least in ENOUGH.items():
        enough = len(took_ns) >= least or q == 50
        found[f"p{q}"] = round(float(np.percentile(took_ns, q)) / 1e6, 6) if enough else None
        if not enough:
            notes.append(f"no p{q}: it takes {least} calls")
    return found, notes


def summed_up(contender: Contender, rounds: int, energy: float | None) -> Tree:
    """The figures of a contender, of as many rounds as all have."""
    took = np.asarray(contender.took_ns)
    found, notes = percentiles(took)
    mean_ms = float(took.mean()) / 1e6
    job, alone = contender.job, contender.alone
    return {
        "name": job.name,
        "format": job.format,
        "threads": job.threads,
        "batch": job.batch,
        "latency_ms": {**found, "mean": round(mean_ms, 6), "n": len(took)},
        "per_s": round(1e3 * job.batch / mean_ms, 3),
        "rounds_ms": [round(each / 1e6, 6) for each in contender.rounds_ns[:rounds]],
        "load_ms": alone["load_ms"],
        "cold_start_ms": alone["cold_start_ms"],
        "memory_mb": alone["memory_mb"],
        "energy_mj": energy,
        "notes": [*contender.opened.notes, *notes],
    }


# What goes on beside


class Beside:
    """What the rest of the machine does between two moments."""

    def __init__(self) -> None:
        self.load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self.clocks: list[float] = []
        self.started, self.heat = time.perf_counter(), temperature_c()
        self.ticks, self.own_s, self.pushed = cpu_times(read(PROC / "stat")), time.process_time(), preempted()
        self.look()

    def look(self) -> None:
        """Take a look at the clock of the processor."""
        if clock := clock_mhz():
            self.clocks.append(clock)

    def told(self) -> Tree:
        """What was seen, as RESULT has it."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        now, heat, pushed = cpu_times(read(PROC / "stat")), temperature_c(), preempted()
        others = stolen = None
        if self.ticks and now and now[0] > self.ticks[0]:
            whole, busy, steal = (after - before for after, before in zip(now, self.ticks, strict=True))
            own = (time.process_time() - self.own_s) * os.sysconf("SC_CLK_TCK")
            others, stolen = round(max(0.0, busy - own) / whole, 4), round(steal / whole, 4)
        each_s = None if pushed is None or self.pushed is None else (pushed - self.pushed) / seconds
        return {
            "seconds": round(seconds, 3),
            "others_share": others,
            "stolen_share": stolen,
            "load_1m": self.load and round(self.load, 2),
            "preempted_per_s": each_s and round(each_s, 2),
            "clock_mhz": [round(f(self.clocks), 1) for f in (min, max)] if self.clocks else None,
            "temperature_c": None if heat is None or self.heat is None else [self.heat, heat],
        }


def preempted() -> int | None:
    """How often this process was pushed off its processor so far."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def sustained(contender: Contender, seconds: float, look: Callable[[float], None]) -> Tree:
    """Run a file without pauses; one row a second."""
    rows: list[tuple[float, float, float | None, float | None]] = []
    started = time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        look(passed)
        took, ends = list[int](), time.perf_counter() + WINDOW_S
        while not took or time.perf_counter() < ends:
            took += slice_ns(contender.opened.call, contender.calls)
        at = round(time.perf_counter() - started, 2)
        clock = clock_mhz()
        rows.append((at, round(float(np.median(took)) / 1e6, 6), temperature_c(), clock and round(clock, 1)))
    kept = {key: getattr(contender.job, key) for key in ("name", "format", "threads", "batch")}
    names = ("at_s", "latency_ms", "temperature_c", "clock_mhz")
    return {**kept, **{name: [row[k] for row in rows] for k, name in enumerate(names)}}


# The whole


class Progress:
    """Tells how far it is, now and then; a closed stderr ends the program: nobody is left to read the result."""

    def __init__(self, total_s: float) -> None:
        self.total_s, self.done_s, self.last = max(total_s, 1e-9), 0.0, -math.inf

    def at(self, what: str, more_s: float = 0.0) -> None:
        """Tell, unless it was told just now."""
        now = time.monotonic()
        if now - self.last >= LOOK_EVERY_S / 2:
            self.last = now
            share = round(min(1.0, (self.done_s + more_s) / self.total_s), 4)
            print(json.dumps({"done": share, "what": what}), file=sys.stderr, flush=True)


def read_spec(text: str) -> Tree:
    """Read SPEC.json; what it leaves out has its default.

    Raises:
        ValueError: it is none, of another schema, or a value measures nothing.
        TypeError: a value is of another type.
    """
    given = json.loads(text)
    if not isinstance(given, dict) or given.get("schema") != SCHEMA or not given.get("files"):
        raise ValueError(f"expected an object with the schema {SCHEMA} and some files")
    if unknown := given.keys() - {"schema", "files", *DEFAULTS}:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    spec = {**DEFAULTS, **given}
    for key in ("threads", "batches"):
        if not spec[key] or min(spec[key]) < 1:
            raise ValueError(f"{key} {spec[key]}: expected whole numbers above 0")
    if not 0 < spec["seconds"] < math.inf or min(spec["min_rounds"], spec["warmup"]) < 1:
        raise ValueError("expected seconds above 0, and at least one round and one call to warm up")
    return spec


@dataclass
class Work:
    """A benchmark on its way.

    Attributes:
        spec: from `read_spec`.
        meter: of energy, or why there is none.
        jobs: what the spec comes to.
        contenders: files that are open.
        errors: what could not be measured, rows of RESULT.
        skipped: what does not fit.
        progress: told.
        beside: since the first round.
        noise: of the rounds, when they are over.
        energy: millijoules of each contender.
        sustained: rows of RESULT.
    """

    spec: Tree
    meter: Meter | str
    jobs: list[Job]
    errors: list[Tree]
    progress: Progress
    contenders: list[Contender] = field(default_factory=list)
    skipped: list[Tree] = field(default_factory=list)
    beside: Beside | None = None
    noise: Tree | None = None
    energy: list[float] = field(default_factory=list)
    sustained: list[Tree] = field(default_factory=list)


def measure(spec: Tree) -> Tree:
    """Measure all that a spec asks for.

    Args:
        spec: from `read_spec`.

    Returns:
        RESULT.json.
    """
    meter = find_meter()
    described = machine(meter)
    work = planned(spec, meter)
    interrupted = False
    try:
        for step in (open_files, take_turns, read_energy, run_without_pauses):
            step(work)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        interrupted = True
    whole = min((len(each.rounds_ns) for each in work.contenders), default=0)
    energy = [*work.energy, *[None] * len(work.contenders)]
    noise = work.noise or (work.beside.told() if whole and work.beside else None)
    return {
        "schema": SCHEMA,
        "machine": described,
        "runs": [summed_up(e, whole, mj) for e, mj in zip(work.contenders, energy, strict=False) if whole],
        "sustained": work.sustained,
        "noise": noise,
        "errors": work.errors,
        "skipped": work.skipped,
        "interrupted": interrupted,
    }


def planned(spec: Tree, meter: Meter | str) -> Work:
    """Every file with every number of threads and every batch."""
    jobs: list[Job] = []
    errors: list[Tree] = []
    for file in spec["files"]:
        try:
            found = files_of(file)
        except (ValueError, OSError, DeviceError) as error:
            errors.append({"name": file["name"], "what": first_line(error)})
            continue
        jobs += [
            Job(file["name"], path, format, threads, batch)
            for format, path in found
            for threads in spec["threads"]
            for batch in spec["batches"]
        ]
    fresh_s = max(1, spec["cold_starts"]) * spec["alone"]
    each_s = fresh_s + spec["seconds"] + ENERGY_S * isinstance(meter, Meter)
    progress = Progress(len(jobs) * each_s + spec["sustained_s"] * len({job.path for job in jobs}))
    return Work(spec, meter, jobs, errors, progress)


def open_files(work: Work) -> None:
    """Open each in processes of its own first, unless the spec trusts them, then here."""
    spec = work.spec
    for job in work.jobs:
        alone = opened_alone(work, job) if spec["alone"] else UNKNOWN_ALONE
        if alone is None:
            continue
        try:
            work.contenders.append(Contender(job, job.open(spec["seed"]), alone))
        except Exception as error:  # noqa: BLE001 - beside others, memory may not be enough for it
            work.errors.append({"name": job.title, "what": first_line(error)})


def opened_alone(work: Work, job: Job) -> Tree | None:
    """What fresh processes tell of a file; None where one failed, which is among the errors then."""
    spec, told = work.spec, list[Tree]()
    for _ in range(max(1, spec["cold_starts"])):
        work.progress.at(f"fresh process for {job.title}")
        told.append(probe(job, spec["seed"], 0 if told else SETTLING_CALLS))
        work.progress.done_s += 1
        if not {"error", "skip"}.isdisjoint(told[-1]):
            break
    failed, skip = told[-1].get("error"), told[-1].get("skip")
    if failed or skip:
        row = {"name": job.title, "what": failed or skip}
        rows = work.errors if failed else work.skipped
        rows += [row] if row not in rows else []  # the same with each number of threads
        return None
    load_ms, cold_ms = (
        round(float(np.median([each[key] for each in told])), 3) for key in ("load_ms", "cold_start_ms")
    )
    return {**told[0], "load_ms": load_ms, "cold_start_ms": cold_ms if spec["cold_starts"] else None}


def take_turns(work: Work) -> None:
    """Time all open files side by side."""
    if not work.contenders:
        return
    whole_s, looked = work.spec["seconds"] * len(work.contenders), -math.inf
    beside = work.beside = Beside()

    def look(passed: float) -> None:
        nonlocal looked
        if passed - looked >= LOOK_EVERY_S:
            looked = passed
            beside.look()
        work.progress.at("rounds", min(passed, whole_s))

    with without_collector():
        run_rounds(work.contenders, work.spec, look)
    work.noise = beside.told()
    work.progress.done_s += whole_s


def read_energy(work: Work) -> None:
    """Energy of each file alone, where it can be read."""
    for each in work.contenders:
        if isinstance(work.meter, Meter):
            work.progress.at(f"energy of {each.job.title}")
            work.energy.append(round(energy_mj(each.opened.call, work.meter, ENERGY_S), 4))
            work.progress.done_s += ENERGY_S


def run_without_pauses(work: Work) -> None:
    """Each file for a while, with the most threads and the smallest batch that were asked for."""
    hardest: dict[str, Contender] = {}
    for each in sorted(work.contenders, key=lambda each: (-each.job.threads, each.job.batch)):
        hardest.setdefault(each.job.path, each)
    for each in hardest.values() if work.spec["sustained_s"] else ():
        look = partial(work.progress.at, f"{each.job.title} without pauses")
        work.sustained.append(sustained(each, work.spec["sustained_s"], look))
        work.progress.done_s += work.spec["sustained_s"]


def _stop(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 with a result on stdout, also where files failed; 2 for a spec that cannot be read."""
    # The runtimes write to stdout as they like; the result alone belongs there.
    out = os.dup(1)
    os.dup2(2, 1)
    if list(arguments) == ["--open"]:
        return open_alone(out)
    # A shell starts what it runs in the background with SIGINT ignored.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stop)
    try:
        spec = read_spec(sys.stdin.read())
    except (ValueError, TypeError) as error:
        print(f"harness: no SPEC.json on stdin: {error}", file=sys.stderr)
        return 2
    result = measure(spec)
    with os.fdopen(out, "w", encoding="utf-8") as stream:
        json.dump(result, stream)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
