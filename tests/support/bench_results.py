"""Results of benchmarks, made up."""

from __future__ import annotations

import numpy as np

from edgekit.bench.results import Failure, Latency, Machine, Memory, Noise, Result, Run, Sustained

MACHINE = Machine(
    system="Linux 6.1", machine="aarch64", cpu="Cortex-A76", cores=4, isa=("asimd", "asimddp"), memory_mb=8192.0,
    python="3.11.2", runtimes={"onnxruntime": "1.31.1", "numpy": "2.3.5"}, governor="performance",
    model="Raspberry Pi 5", energy="none: no RAPL and no INA sensor",
)  # fmt: skip
QUIET = Noise(10.0, 0.01, 0.0, 0.1, 1.0, (2400.0, 2400.0), (50.0, 52.0))


def rounds(median_ms: float, n: int = 60, *, noise: float = 0.01, seed: int = 0) -> tuple[float, ...]:
    """Rounds around a median."""
    drawn = np.random.default_rng(seed).normal(1, noise, n)
    return tuple(float(each) for each in median_ms * np.abs(drawn))


def run(name: str = "net", format: str = "onnx", ms: float = 2.0, **more: object) -> Run:
    """A run of a file."""
    given: dict[str, object] = {
        "name": name, "format": format, "threads": 1, "batch": 1,
        "latency_ms": Latency(ms, 1.2 * ms, None, 1.05 * ms, 500), "per_s": 1e3 / ms, "rounds_ms": rounds(ms),
        "load_ms": 12.0, "cold_start_ms": 350.0, "memory_mb": Memory(80.0, 90.0, 60.0), "energy_mj": None,
        "notes": ("no p99: it takes 662 calls",), **more,
    }  # fmt: skip
    return Run(**given)  # type: ignore[arg-type]


def result(*runs: Run, **more: object) -> Result:
    """A result of some runs."""
    given: dict[str, object] = {
        "machine": MACHINE, "runs": runs or (run(),), "sustained": (), "noise": QUIET, "errors": (), **more,
    }  # fmt: skip
    return Result(**given)  # type: ignore[arg-type]


def full() -> Result:
    """Everything that a result can have, with names that are markup elsewhere."""
    heat = Sustained(
        "net", "onnx", 1, 1, (1.0, 2.0, 3.0), (2.0, 2.2, 2.6), (50.0, 60.0, None), (None, None, None)
    )
    return result(
        run("<b>[red]net", energy_mj=3.5),
        run("net", "tflite", 1.0, threads=2, batch=8),
        sustained=(heat,),
        errors=(Failure("<i>bad", "ended with SIGSEGV"),),
        skipped=(Failure("net", "batch 8: the file's batch is fixed at 1"),),
    )
