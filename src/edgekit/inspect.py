"""`edgekit inspect`: what a model file or a bundle is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from edgekit.bundle import MANIFEST, Bundle
from edgekit.errors import UsageError


@dataclass(frozen=True, slots=True)
class Found:
    """What `inspect_path` found.

    Attributes:
        kind: "bundle", or the form of the model.
        facts: label to value, for people in this order and for machines as JSON.
    """

    kind: str
    facts: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"kind": self.kind, **self.facts}

    def table(self) -> Table:
        """For a terminal."""
        table = Table(show_header=False)
        table.add_row("kind", self.kind)
        for label, value in self.facts.items():
            table.add_row(label.replace("_", " "), _text(value))
        return table


def inspect_path(
    path: Path, *, trust: bool = False, input_shapes: Sequence[tuple[int, ...]] | None = None
) -> Found:
    """Read a model or a bundle without changing anything.

    Args:
        path: file, or directory with a manifest.
        trust: allow unpickling.
        input_shapes: where the model does not tell its own.

    Raises:
        UsageError: it is neither.
        LoweringError: the model cannot become one graph.
    """
    if path.is_dir() and (path / MANIFEST).exists():
        return _bundle(Bundle.open(path))
    if path.is_dir():
        raise UsageError(
            f"{path}: a directory without {MANIFEST}",
            expected="a model file, or a bundle",
            way_out="Pass the model file inside it (.pt, .pt2, .pth), or the directory that "
            "`edgekit compress` wrote.",
        )
    return _model(path, trust, input_shapes)


def _bundle(bundle: Bundle) -> Found:
    manifest, report = bundle.manifest, bundle.report
    facts: dict[str, Any] = {
        "name": manifest.name,
        "version": manifest.version,
        "accepted": report.get("accepted"),
        "reasons": report.get("reasons", []),
        "inputs": [f"{t.name}: {t.dtype} {list(t.shape)}" for t in manifest.inputs],
        "outputs": [f"{t.name}: {t.dtype} {list(t.shape)}" for t in manifest.outputs],
    }
    for artifact in manifest.artifacts:
        facts[artifact.format] = f"{artifact.file}, {artifact.size_bytes:,} bytes, {artifact.io_dtype} ends"
    facts["opset"] = manifest.compatibility.opset
    facts["labels"] = len(manifest.labels)
    return Found("bundle", facts)


def _model(path: Path, trust: bool, input_shapes: Sequence[tuple[int, ...]] | None) -> Found:
    from edgekit.load import load_candidate

    candidate = load_candidate(path, trust=trust, input_shapes=input_shapes)
    program = candidate.program
    ops = Counter(
        str(n.target).removeprefix("aten.").split(".")[0]
        for n in program.graph.graph.nodes
        if n.op == "call_function"
    )
    facts = {
        "name": candidate.name,
        "sha256": candidate.sha256,
        "size_bytes": candidate.size_bytes,
        "params": candidate.params,
        "inputs": [f"{t.name}: {t.dtype} {list(t.shape)}" for t in program.inputs],
        "outputs": [f"{t.name}: {t.dtype} {list(t.shape)}" for t in program.outputs],
        "any_batch": program.dynamic_batch,
        "ops": dict(ops.most_common()),
        "notes": list(candidate.notes),
    }
    return Found(candidate.form, facts)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} × {n}" for k, n in value.items())
    if isinstance(value, (list, tuple)):
        return "\n".join(str(v) for v in value) or "–"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
