"""Runs one file in its runtime, in the environment that has it: `python -m benchmarks.peers.engine FILE`.

Reads requests from standard input, a JSON object a line, and answers each with one. Between requests it sleeps, so that
many of these processes can take turns.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import import_runtime, open_file, predict_all
from benchmarks.machine import peak_mb


def main(file: str) -> int:
    """Answer until standard input ends."""
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    path = Path(file)
    import_runtime(path)
    before_mb = peak_mb()
    engine = open_file(path)
    call: Callable[[], object] = lambda: None  # noqa: E731

    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        found: dict[str, Any] = {}
        if request["do"] == "predict":
            np.save(request["y"], predict_all(engine, np.load(request["x"], mmap_mode="r")))
        elif request["do"] == "prepare":
            call = engine.prepare(np.load(request["x"]))
            found["ms"] = min(_timed(call, 1) for _ in range(5))
            found["memory_mb"] = round(peak_mb() - before_mb, 1)
        else:
            # The caches hold what ran before, and the clock and the branch predictors are those of a pause.
            _timed(call, request["repeats"])
            found["ms"] = _timed(call, request["repeats"])
        print(json.dumps(found), file=told, flush=True)
    return 0


def _timed(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds of one call."""
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) * 1000 / repeats


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
