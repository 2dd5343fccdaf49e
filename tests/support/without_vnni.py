"""An x86 processor without VNNI, whose uint8 × int8 kernels clip at 16 bits: this one, if need be made to look so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_suffix(".c")


def flags() -> set[str]:
    """Of this processor; empty where Linux does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return set()
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def environment(folder: Path) -> dict[str, str]:
    """Environment of a process that sees such a processor; the test is skipped where none can be had."""
    here = flags()
    if "avx2" not in here:
        pytest.skip("an x86 processor is wanted")
    if not here & {"avx512_vnni", "avx_vnni"}:
        return dict(os.environ)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if "cpuid_fault" not in here or compiler is None:
        pytest.skip("this processor cannot be made to look older, or there is no C compiler")
    library = folder / "without_vnni.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def python(folder: Path, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program there."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
