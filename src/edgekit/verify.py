"""`edgekit verify`: every proof again, on the saved files, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from edgekit.bundle import Bundle, Golden
from edgekit.errors import UsageError
from edgekit_converters.errors import LoweringError
from edgekit_converters.parity import Bound, Proof, measure
from edgekit_converters.predict import SavedModel, open_saved
from edgekit_converters.program import Grid, TensorInfo
from edgekit_runtime import contract

TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Verified:
    """Result of `verify_bundle`.

    Attributes:
        path: the bundle.
        proofs: format to its proof on the golden inputs.
        failures: format to why its file could not be run.
    """

    path: Path
    proofs: Mapping[str, Proof]
    failures: Mapping[str, str]

    @property
    def holds(self) -> bool:
        """Every file ran and is within its bound."""
        return not self.failures and all(p.holds for p in self.proofs.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        proofs = {n: {**asdict(p), "holds": p.holds} for n, p in self.proofs.items()}
        return {
            "bundle": str(self.path),
            "holds": self.holds,
            "proofs": proofs,
            "failures": dict(self.failures),
        }

    def table(self) -> Table:
        """For a terminal."""
        table = Table("format", "read back by", "inputs", "max steps", "p99.9", "equal", "holds")
        for name, p in self.proofs.items():
            row = (str(p.n), f"{p.max_steps:g} of {p.max_allowed:g}", f"{p.p999_steps:g}", f"{p.equal:.2%}")
            table.add_row(name, p.reference, *row, "yes" if p.holds else "NO")
        for name, why in self.failures.items():
            table.add_row(name, why, "", "", "", "", "NO")
        return table


def verify_bundle(path: Path) -> Verified:
    """Check every hash, then run the golden inputs through every file and count the steps.

    Each format runs in a process of its own: a file that comes from elsewhere may crash a native runtime.

    Raises:
        UsageError: it is no bundle, or a file is not what the manifest says.
    """
    bundle = Bundle.open(path)
    proofs: dict[str, Proof] = {}
    failures: dict[str, str] = {}
    for artifact in bundle.manifest.artifacts:
        answer = _in_a_process(bundle.path, artifact.format)
        if "failure" in answer:
            failures[artifact.format] = answer["failure"]
        else:
            proofs[artifact.format] = Proof(**answer["proof"])
    return Verified(bundle.path, proofs, failures)


def prove_artifact(path: Path, name: str) -> Proof:
    """Run the golden inputs through one file of a bundle.

    Raises:
        UsageError: golden inputs do not fit the manifest.
        LoweringError: the runtime refuses the file.
    """
    bundle = Bundle.open(path)
    golden = bundle.golden(name)
    saved = saved_model(bundle, name)
    if len(golden.inputs) != len(saved.inputs) or len(golden.outputs) != len(saved.outputs):
        raise UsageError(
            f"{path}: golden vectors of {name} have {len(golden.inputs)} inputs "
            f"and {len(golden.outputs)} outputs",
            expected=f"{len(saved.inputs)} and {len(saved.outputs)}, as in manifest.json",
            way_out="Write the bundle anew with `edgekit compress`.",
        )
    return measure(name, open_saved(saved), golden.inputs, golden.outputs, golden.step, _bound(golden))


def saved_model(bundle: Bundle, name: str) -> SavedModel:
    """What it takes to feed one artifact of a bundle."""
    artifact = bundle.manifest.artifact(name)
    assert artifact is not None
    return SavedModel(
        name,
        bundle.file(name),
        tuple(_info(s) for s in bundle.manifest.inputs),
        tuple(_info(s) for s in bundle.manifest.outputs),
        tuple(_grid(g) for g in artifact.input_grids),
        tuple(_grid(g) for g in artifact.output_grids),
        layout=artifact.input_layout,
    )


def _bound(golden: Golden) -> Bound:
    loosest = max(golden.tolerance_steps)
    return Bound(loosest, loosest)


def _info(spec: contract.TensorSpec) -> TensorInfo:
    batch = bool(spec.shape) and spec.shape[0] == -1
    return TensorInfo(spec.name, tuple(1 if n == -1 else n for n in spec.shape), spec.dtype, batch)


def _grid(grid: contract.Grid | None) -> Grid | None:
    return None if grid is None else Grid(grid.scale, grid.zero_point)


def _in_a_process(path: Path, name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "edgekit.verify", str(path), name]
    try:
        # Our own module, by our own interpreter.
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"its runtime did not answer within {TIMEOUT_S:.0f} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"failure": f"its runtime died with status {done.returncode} {last[:200]}"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def main(path: str, name: str) -> None:
    """Print one line of JSON: `{"proof": …}` or `{"failure": …}`."""
    try:
        proof = prove_artifact(Path(path), name)
    except (LoweringError, UsageError) as error:
        print(json.dumps({"failure": str(error)}))
        return
    values = {k: float(v) if isinstance(v, np.floating) else v for k, v in asdict(proof).items()}
    print(json.dumps({"proof": values}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
