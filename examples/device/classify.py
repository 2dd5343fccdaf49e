"""Classify the pictures of a folder: `python -m examples.device.classify BUNDLE FOLDER`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from edgekit_runtime import DeviceError, Model
from edgekit_runtime.postprocessing import softmax, top
from examples.device.frames import pictures, read


def main(argv: list[str] | None = None) -> int:
    """One line for each picture, and the share that is right where its folder is named like a label."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="that `edgekit compress` wrote")
    parser.add_argument("folder", type=Path, help="of pictures")
    parser.add_argument("--top", type=int, default=3)
    options = parser.parse_args(argv)
    try:
        model = Model.load(options.bundle)
        tested = model.self_test()
        state = "as where it was evaluated" if tested.ok else f"{tested.worst_steps:g} steps off"
        print(
            f"{model.info.name} {model.info.version} in {model.info.format}: {state} on {tested.n} known inputs"
        )
        known = right = 0
        for path in pictures(options.folder):
            began = time.perf_counter()
            scores = model.predict_raw(read(path))
            took_ms = 1e3 * (time.perf_counter() - began)
            best = top(softmax(scores), model.info.labels, options.top)
            shown = ", ".join(f"{label} {share:.0%}" for label, share in best)
            print(f"{path.relative_to(options.folder)}: {shown} ({took_ms:.1f} ms)")
            if path.parent.name in model.info.labels:
                known, right = known + 1, right + (best[0][0] == path.parent.name)
        if known:
            print(f"right: {right} of {known}")
    except (DeviceError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
