"""ncnn's own way: pnnx converts, `ncnn2table` finds ranges by KL divergence, `ncnn2int8` quantizes.

The tools are in no package; `ncnn_tools` builds them from the repository, of the same release.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.peers.inputs import Inputs
from benchmarks.peers.ncnn_tools import tool


def build(inputs: Inputs, out: Path) -> None:
    """Write `out` and its weights, int8 where ncnn has kernels for it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = folder / "float.param"
        build_float(inputs, plain)
        listed = []
        for index, sample in enumerate(inputs.calibration()):
            path = folder / f"{index:05}.npy"
            np.save(path, sample)
            listed.append(str(path))
        (folder / "samples.txt").write_text("\n".join(listed) + "\n")
        table = folder / "scales.table"
        ends = (plain, plain.with_suffix(".bin"))
        shape = ",".join(str(n) for n in reversed(inputs.calibration().shape[1:]))
        _run(
            tool("ncnn2table"), *ends, folder / "samples.txt", table,
            f"shape=[{shape}]", "method=kl", "thread=1", "type=1",
        )  # fmt: skip
        _run(tool("ncnn2int8"), *ends, out, out.with_suffix(".bin"), table)


def build_float(inputs: Inputs, out: Path) -> None:
    """Write `out` and its weights, in float32."""
    with tempfile.TemporaryDirectory() as name:
        given = Path(name) / "given.onnx"
        given.symlink_to(inputs.onnx)
        shape = ",".join(str(n) for n in (1, *inputs.calibration().shape[1:]))
        said = _run(Path(sys.executable).with_name("pnnx"), given, f"inputshape=[{shape}]f32", "fp16=0")
        if missing := [line for line in said.splitlines() if line.endswith("is not supported")]:
            # It writes a network all the same, which computes something else.
            raise RuntimeError(f"pnnx: {missing[0]}")
        given.with_suffix(".ncnn.param").rename(out)
        given.with_suffix(".ncnn.bin").rename(out.with_suffix(".bin"))


def _run(program: Path, *arguments: object) -> str:
    done = subprocess.run(
        [str(program), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    sys.stderr.write(done.stdout)
    if done.returncode:
        raise RuntimeError(f"{program.name}: {(done.stdout.splitlines() or ['nothing said'])[-1]}")
    return done.stdout
