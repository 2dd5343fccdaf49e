"""Runs one peer in its environment: `python -m benchmarks.peers.convert MODULE:FUNCTION INPUTS OUT`.

The last line of standard output is JSON: seconds, and the peak of resident memory in MB, of this process or of the
largest that it starts.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

from benchmarks.machine import peak_mb
from benchmarks.peers.inputs import Inputs

FAILED = 3


def main(builder: str, inputs: str, out: str) -> int:
    """Exit status 3 where the peer refuses; why is in the JSON."""
    # Peers print pages, and their native parts do not know of `sys.stdout`.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, function = builder.partition(":")
    build = getattr(importlib.import_module(f"benchmarks.peers.{module}"), function)
    began = time.perf_counter()
    try:
        build(Inputs(Path(inputs)), Path(out))
    except Exception as error:  # noqa: BLE001 - peers fail in ways of their own; the failure is the result
        print(json.dumps({"failed": f"{type(error).__name__}: {str(error)[:300]}"}), file=told, flush=True)
        return FAILED
    seconds = time.perf_counter() - began
    most_mb = max(peak_mb(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    found = {"seconds": round(seconds, 2), "peak_mb": round(most_mb)}
    print(json.dumps(found), file=told, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
