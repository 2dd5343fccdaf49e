"""Which kernels of a `.onnx` file take the time: ONNX Runtime's own profile."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgekit.bench.runners import onnx_call, open_onnx

ROUNDS: Final = 40
# The first calls allocate and warm the caches.
WARM_UP: Final = 5
# A kernel is named when it costs at least this share of the whole more than in float.
NAMED: Final = 0.02


def kernel_ms(path: Path, *, rounds: int = ROUNDS) -> dict[str, float]:
    """Milliseconds that each kind of kernel takes in one call on one thread, mean over the calls.

    Args:
        path: the saved file.
        rounds: calls after the warm-up.

    Raises:
        UsageError: ONNX Runtime refuses the file.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
        session = open_onnx(path, profile=Path(folder) / "profile")
        call = onnx_call(path, session)
        for _ in range(WARM_UP + rounds):
            call()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    calls: dict[str, list[tuple[str, float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            calls.setdefault(event["name"], []).append((event["args"]["op_name"], event["dur"] / 1000))
    times: dict[str, float] = {}
    for of_node in calls.values():
        settled = of_node[-rounds:]
        kernel = settled[0][0]
        times[kernel] = times.get(kernel, 0.0) + sum(ms for _, ms in settled) / len(settled)
    return times


def slower_kernels(integer: Mapping[str, float], floating: Mapping[str, float]) -> list[str]:
    """Kernels that cost more than their float counterparts, dearest first, as "QLinearMul 0.29 ms (float 0.07)".

    Args:
        integer: `kernel_ms` of the int8 file.
        floating: `kernel_ms` of its float twin.
    """
    counterparts = {name: floating.get(_in_float(name), 0.0) for name in integer}
    extra = {name: ms - counterparts[name] for name, ms in integer.items()}
    least = NAMED * sum(integer.values())
    dearest = sorted((name for name in extra if extra[name] > least), key=lambda name: -extra[name])
    return [f"{name} {integer[name]:.3g} ms (float {counterparts[name]:.3g})" for name in dearest]


def _in_float(kernel: str) -> str:
    return "Gemm" if kernel == "QGemm" else kernel.removeprefix("QLinear")
