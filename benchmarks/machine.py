"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TypedDict

# The extensions that decide which integer kernels a runtime picks, x86 and ARM names.
EXTENSIONS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "sve",
)
PACKAGES = (
    "torch", "torchao", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer", "numpy",
)  # fmt: skip


class Machine(TypedDict):
    """Stable keys of every result file."""

    cpu: str
    isa: list[str]
    cores: int
    python: str
    versions: dict[str, str]


def machine() -> Machine:
    """The processor, its integer extensions, and the packages' versions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {
        key.strip(): value.strip() for key, _, value in (row.partition(":") for row in text.splitlines())
    }
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "isa": [name for name in EXTENSIONS if name in flags],
        "cores": os.cpu_count() or 1,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def peak_mb() -> float:
    """Most resident memory of this process until now, in MB (2²⁰ bytes).

    From `VmHWM`: `ru_maxrss` of a process that another one started begins with what that one had.
    """
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def version(name: str) -> str:
    """Installed version of a distribution, "absent" without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"
