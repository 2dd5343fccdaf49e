"""Bundles, and what the workbench reads from their files: `python -m tests.portable.make FOLDER`.

A device has no workbench, so this is done where there is one, and carried over.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from tests.support import tiny_runs

from edgekit.bundle import Bundle
from edgekit.verify import saved_model
from edgekit_converters.predict import open_saved

INTEGER = ("--format", "tflite", "--io", "int8", "--layout", "nhwc")
BOTH = ("--format", "onnx,tflite")
# Name of the bundle: seed of the network, options.
BUNDLES = {"first": (0, BOTH), "second": (1, BOTH), "integer-ends": (0, INTEGER)}


def make(folder: Path) -> Path:
    """Write all of it.

    Args:
        folder: that does not exist yet.
    """
    folder.mkdir(parents=True)
    x = tiny_runs.images(6, seed=3)
    for name, (seed, options) in BUNDLES.items():
        model, data = folder / f"{name}.pt2", folder / f"{name}.npz"
        tiny_runs.save_program(model, tiny_runs.network(seed))
        tiny_runs.save_data(data, x=tiny_runs.images())
        out = folder / name
        done = tiny_runs.call(
            "compress", model, "--data", data, "-o", out, "--preset", "fast", "--allow-slower", *options
        )
        if done.exit_code:
            raise RuntimeError(done.stderr)
        model.unlink()
        data.unlink()
        written = Bundle.open(out)
        for artifact in written.manifest.artifacts:
            (y,) = open_saved(saved_model(written, artifact.format))([x])
            np.savez(folder / f"{name}.{artifact.format}.npz", x=x, y=y)
    return folder


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    make(target)
