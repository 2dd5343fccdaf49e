"""An environment of its own for each peer, so that none decides which versions another one gets."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.machine import version
from benchmarks.peers import ncnn_tools

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".cache" / "peers" / "environments"
HERE: Final = "edgekit"
# Seconds that an installation may take.
PATIENCE_S: Final = 1800

NCNN: Final = (f"ncnn==1.0.{ncnn_tools.RELEASE}", f"pnnx=={ncnn_tools.RELEASE}", "numpy", "torch==2.13.0")
# What `pip install` is given; `HERE` is the environment that this runs in.
REQUIREMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    HERE: (),
    "onnxruntime": ("onnx==1.23.2", "onnxruntime==1.31.1", "sympy"),
    "ai-edge-quantizer": ("ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0"),
    "litert-torch": ("torch==2.13.0", "torchao==0.18.0", "litert-torch==0.10.0"),
    # The last release that takes ONNX files, with what it was made for; it needs six and setuptools without saying so.
    "neural-compressor": (
        "neural-compressor==2.6",
        "six",
        "onnx==1.16.2",
        "onnxruntime==1.19.2",
        "numpy<2",
        "setuptools<80",
    ),
    "nncf": ("nncf==3.4.0", "openvino==2026.4.1", "onnx==1.23.2"),
    "olive": ("olive-ai==0.13.0", "requests", "onnxruntime==1.31.1", "onnx==1.23.2", "torch==2.13.0"),
    "ncnn": NCNN,
    # Quantizing takes a compiler and the repository; running does not.
    "ncnn-tools": (*NCNN, "cmake", "ninja"),
    "mnn": ("mnn==3.6.1", "numpy"),
}

# What is run there after that.
PREPARED: Final[Mapping[str, tuple[str, ...]]] = {"ncnn-tools": ("-m", "benchmarks.peers.ncnn_tools")}


class NotInstalledError(Exception):
    """An environment that cannot be made; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A place where a peer runs.

    Attributes:
        name: key of `REQUIREMENTS`.
        python: its interpreter.
        versions: of what was asked for.
    """

    name: str
    python: Path
    versions: Mapping[str, str]


def environment(
    name: str, cache: Path = CACHE, *, told: Callable[[str], None] = lambda _: None
) -> Environment:
    """Make an environment, unless it is there.

    Args:
        name: key of `REQUIREMENTS`.
        cache: folder of all environments.
        told: hears before an installation begins, for it may take minutes.

    Raises:
        NotInstalledError: something cannot be installed.
    """
    wanted = REQUIREMENTS[name]
    if name == HERE:
        return Environment(name, Path(sys.executable), {"edgekit": version("edgekit")})
    key = hashlib.sha256(repr((wanted, sys.version)).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{key}"
    python, ready = folder / "bin" / "python", folder / "versions.json"
    if not ready.exists():
        told(f"{name}: installing {', '.join(wanted)}")
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted])
        if name in PREPARED:
            told(f"{name}: {' '.join(PREPARED[name])}")
            _run([str(python), *PREPARED[name]])
        listed = _run([str(python), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"])
        names = {_name(each) for each in wanted}
        found = {row["name"]: row["version"] for row in json.loads(listed) if _name(row["name"]) in names}
        ready.write_text(json.dumps(found, indent=1) + "\n")
    return Environment(name, python, json.loads(ready.read_text()))


def _name(requirement: str) -> str:
    """Of a distribution, as the index spells it."""
    plain = requirement
    for mark in "=<>[!~":
        plain = plain.partition(mark)[0]
    return plain.strip().lower().replace("_", "-")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE_S, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise NotInstalledError(f"{' '.join(command[1:4])}: not done after {PATIENCE_S} s") from None
    if done.returncode:
        said = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()
        raise NotInstalledError((said or ["pip said nothing"])[-1].removeprefix("ERROR: ")[:300])
    return done.stdout
