"""`ncnn2table` and `ncnn2int8`, built from ncnn's repository: its packages have the runtime alone.

`python -m benchmarks.peers.ncnn_tools` in the environment that has ncnn; `environments` does it when it makes that one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

RELEASE: Final = "20260526"
SOURCE: Final = "https://github.com/Tencent/ncnn"
FOLDER: Final = Path(sys.prefix) / "ncnn-tools"
NAMES: Final = ("ncnn2table", "ncnn2int8")
# No more than the tools need: images and other processors are left out.
OPTIONS: Final = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DNCNN_BUILD_TOOLS=ON",
    "-DNCNN_SIMPLEOCV=ON",
    *(
        f"-DNCNN_{name}=OFF"
        for name in (
            "BUILD_EXAMPLES",
            "BUILD_BENCHMARK",
            "BUILD_TESTS",
            "PYTHON",
            "VULKAN",
            "RUNTIME_CPU",
            "AVX512",
        )
    ),
)


def tool(name: str) -> Path:
    """A tool, as it was built."""
    return FOLDER / name


def build() -> None:
    """Build the tools.

    Raises:
        RuntimeError: something fails; the message is its last line.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        source, made = place / "ncnn", place / "build"
        _run("git", "clone", "--quiet", "--depth", "1", "--branch", RELEASE, SOURCE, source)
        own = Path(sys.executable).parent
        _run(
            own / "cmake",
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={own / 'ninja'}",
            "-S",
            source,
            "-B",
            made,
            *OPTIONS,
        )
        _run(own / "cmake", "--build", made, "--target", *NAMES)
        FOLDER.mkdir(exist_ok=True)
        for each in NAMES:
            (found,) = made.rglob(each)
            shutil.move(found, FOLDER / each)


def _run(*command: object) -> None:
    done = subprocess.run(
        [*map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
    )  # fmt: skip
    sys.stderr.write(done.stdout)
    if done.returncode:
        last = [line for line in done.stdout.splitlines() if line.strip()] or ["nothing said"]
        raise RuntimeError(f"{Path(str(command[0])).name}: {last[-1]}")


if __name__ == "__main__":
    build()
