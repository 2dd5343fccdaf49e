"""Model files: read, told apart, and handed on as what they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgekit.errors import UsageError
from edgekit.load.archive import check_archive, damaged
from edgekit.load.pickles import load_pickled
from edgekit.load.pt2 import load_exported
from edgekit.load.script import traced_example
from edgekit.load.sniff import FOREIGN, sniff
from edgekit.load.weights import build, fill, find_weights
from edgekit.usercode import current_folder_importable

_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Loaded:
    """A model before capture.

    Attributes:
        model: `torch.nn.Module`, `ScriptModule` or `ExportedProgram`.
        name: for the bundle and the report.
        form: see `Candidate.form`.
        sha256: of the file, or of the weights.
        size_bytes: of the file, or of the weights.
        notes: for the report.
        example: inputs of the right shapes, where the file tells them.
    """

    model: Any
    name: str
    form: str
    sha256: str
    size_bytes: int
    notes: tuple[str, ...] = ()
    example: tuple[torch.Tensor, ...] | None = None


def read_model(path: Path, *, factory: str | None, trust: bool) -> Loaded:
    """Read a model file.

    Args:
        path: any file name.
        factory: "module:callable" for state dicts.
        trust: allow unpickling of classes.

    Raises:
        UsageError: not a model, damaged, or it needs `factory` or `trust`.
    """
    kind = identify(path)
    if kind in FOREIGN:
        what, way_out = FOREIGN[kind]
        raise UsageError(
            f"{path}: {what}",
            expected="an exported program, TorchScript, a pickled module or a state dict",
            way_out=way_out,
        )
    with current_folder_importable():
        model, form = _READERS[kind](path, factory, trust)
    if factory is not None and form != "state dict":
        note: tuple[str, ...] = (f"--factory {factory} was not needed: the file holds the whole model",)
    else:
        note = ()
    example = traced_example(path) if kind == "torchscript" else None
    return Loaded(model, path.stem, form, _sha256(path), path.stat().st_size, note, example)


def identify(path: Path) -> str:
    """The kind of a file (`sniff.KINDS`), after the checks that need no torch.

    Raises:
        UsageError: missing, a directory, unreadable, empty or a damaged archive.
    """
    if not path.exists():
        raise _unusable(path, "no such file", "Check the path; quote it if it has spaces.")
    if path.is_dir():
        raise _unusable(path, "a directory", "Pass the model file inside it (.pt, .pt2, .pth).")
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}", "Check its permissions.") from error
    size = path.stat().st_size
    if not head:
        raise _unusable(path, "an empty file", "Save or download the model again.")
    members = check_archive(path) if head.startswith(b"PK\x03\x04") else None
    return sniff(head, size, members)


def _unusable(path: Path, what: str, way_out: str) -> UsageError:
    return UsageError(f"{path}: {what}", expected="a model file", way_out=way_out)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read_exported(path: Path, factory: str | None, trust: bool) -> tuple[Any, str]:  # noqa: ARG001
    return load_exported(path, trust=trust), "exported program"


def _read_script(path: Path, factory: str | None, trust: bool) -> tuple[Any, str]:  # noqa: ARG001
    try:
        return torch.jit.load(str(path), map_location="cpu").eval(), "torchscript"
    except Exception as error:  # the native reader raises RuntimeError and others
        raise damaged(path, " ".join(str(error).split())[:300]) from error


def _read_pickled(path: Path, factory: str | None, trust: bool) -> tuple[Any, str]:
    found = find_weights(load_pickled(path, trust=trust))
    if found is None:
        raise UsageError(
            f"{path}: holds neither a module nor named weights",
            expected="a module, or a dict of tensors, bare or under state_dict or model",
            way_out="Save it with torch.save(model.state_dict(), path), or better with torch.export.save.",
        )
    if isinstance(found, torch.nn.Module):
        return found, "pickled module"
    return _with_network(path, found, factory), "state dict"


def _read_safetensors(path: Path, factory: str | None, trust: bool) -> tuple[Any, str]:  # noqa: ARG001
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UsageError(
            f"{path}: a safetensors file, and the package that reads it is not installed",
            expected="the safetensors package",
            way_out="pip install safetensors, or save the weights with torch.save.",
        ) from error
    try:
        weights = load_file(str(path))
    except Exception as error:
        raise damaged(path, str(error)) from error
    return _with_network(path, weights, factory), "state dict"


def _with_network(path: Path, weights: dict[str, torch.Tensor], factory: str | None) -> torch.nn.Module:
    if factory is None:
        raise UsageError(
            f"{path}: a state dict, {len(weights)} tensors without the network that they belong to",
            expected="the code that builds the network",
            way_out="Pass --factory module:callable (the current folder is importable), or save the whole "
            "model with "
            "torch.export.save, which needs no code.",
        )
    return fill(build(factory), weights, str(path))


_READERS: dict[str, Callable[[Path, str | None, bool], tuple[Any, str]]] = {
    "exported program": _read_exported,
    "torchscript": _read_script,
    "torch zip": _read_pickled,
    "legacy torch": _read_pickled,
    "pickle": _read_pickled,
    "safetensors": _read_safetensors,
}
