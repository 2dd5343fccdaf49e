"""The bundle: a directory that is complete or not there, whose bytes follow from its content alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgekit.errors import UsageError
from edgekit.staging import NO_ROOM, put_in_place, staged
from edgekit_runtime import golden
from edgekit_runtime.contract import ContractError, Manifest
from edgekit_runtime.errors import ArtifactError
from edgekit_runtime.golden import Golden

__all__ = [
    "Bundle",
    "Digest",
    "Golden",
    "assemble",
    "check_out",
    "digest",
    "read_golden",
    "write_golden",
    "write_manifest",
    "write_report",
]

MANIFEST, GOLDEN, REPORT, REPORT_HTML = "manifest.json", "golden.npz", "report.json", "report.html"
# Golden vectors of files that are not lowered from the grid that `GOLDEN` is of.
_MORE_GOLDEN = ("islands", "dynamic-onnx", "dynamic-tflite", "weights")
_OWN_FILES = frozenset({MANIFEST, GOLDEN, *(f"golden-{of}.npz" for of in _MORE_GOLDEN), REPORT, REPORT_HTML})
_REWRITE = "Copy the bundle again, or write it anew with `edgekit compress`."


class Digest(NamedTuple):
    """Content of a file or directory: sha256 in hex, and bytes."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose artifacts are what its manifest says.

    Attributes:
        path: the directory.
        manifest: what it holds.
        report: the content of `report.json`.
    """

    path: Path
    manifest: Manifest
    report: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> Bundle:
        """Read a bundle and check every artifact against its size and hash.

        Raises:
            UsageError: it is no bundle, or a file is missing, changed or out of contract.
        """
        path = Path(path)
        if not path.is_dir():
            found = "a file" if path.exists() else "no such directory"
            raise UsageError(
                f"{path}: {found}",
                expected="a bundle: the directory that `edgekit compress` wrote",
                way_out="Check the path.",
            )
        manifest = _read_manifest(path / MANIFEST)
        for artifact in manifest.artifacts:
            _check_artifact(path, artifact.file, Digest(artifact.sha256, artifact.size_bytes))
        return cls(path=path, manifest=manifest, report=_read_report(path / REPORT))

    def file(self, name: str) -> Path:
        """Return the path of the artifact of the format `name`.

        Raises:
            UsageError: the bundle has no such artifact.
        """
        artifact = self.manifest.artifact(name)
        if artifact is None:
            formats = ", ".join(each.format for each in self.manifest.artifacts)
            raise UsageError(
                f"{self.path}: no {name} artifact",
                expected=f"one of {formats}",
                way_out="Choose one of them.",
            )
        return self.path / artifact.file

    def golden(self, name: str) -> Golden:
        """Return the vectors of the self-test of the format `name`."""
        artifact = self.manifest.artifact(name)
        return read_golden(self.path / (artifact.golden if artifact else GOLDEN))


def digest(path: Path) -> Digest:
    """Hash a file, or a directory such as an `.mlpackage`.

    The hash of a directory is the sha256 over its files in the order of their relative paths (UTF-8, with
    `/`, compared as bytes), each as: length of the path (8 bytes, big endian), path, sha256 of the content
    (32 bytes). Times, modes and empty directories do not count.

    Raises:
        UsageError: something inside is neither a file nor a directory; a link could point anywhere.
    """
    if path.is_file():
        with path.open("rb") as file:
            return Digest(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
    whole, size = hashlib.sha256(), 0
    for relative, file_path in sorted(_files_below(path)):
        with file_path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        whole.update(len(relative).to_bytes(8, "big") + relative + content)
        size += file_path.stat().st_size
    return Digest(whole.hexdigest(), size)


def check_out(out: Path) -> None:
    """Refuse a place that a bundle must not or cannot be written to, before any work is done.

    Raises:
        UsageError: `out` is a file or below one, may not be written, or is a directory that holds anything but a
            bundle of ours.
    """
    try:
        found, foreign = _obstacle(out), _foreign(out)
    except OSError as error:
        found, foreign = error.strerror or str(error), ""
    if found:
        raise UsageError(
            f"{out}: {found}", expected="a place that can be written", way_out="Choose another place with -o."
        )
    if foreign:
        raise UsageError(
            f"{out}: not empty, it holds {foreign}",
            expected="a new or empty directory, or an earlier bundle",
            way_out="Choose another directory with -o, or empty this one.",
        )


def _obstacle(out: Path) -> str:
    """What is in the way of a directory at `out`, "" if nothing is."""
    if out.exists() and not out.is_dir():
        return "is a file, not a directory"
    target = out.resolve()
    nearest = next((place for place in target.parents if place.exists()), target)
    if not nearest.is_dir():
        return f"{nearest} is a file"
    return "" if os.access(nearest, os.W_OK | os.X_OK) else f"no permission to write to {nearest}"


@contextmanager
def assemble(out: Path) -> Iterator[Path]:
    """Give a hidden directory beside `out` to write a bundle into, and put it in place at the end.

    The directory becomes `out` by one rename after everything in it is on the disk; an earlier bundle there
    is replaced. On any error, an interrupt included, it is removed and `out` is as it was. What a killed
    process left beside `out` is removed first.

    Raises:
        UsageError: `out` is not free (`check_out`), cannot be written, or the disk is full.
    """
    check_out(out)
    target = out.resolve()
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(staged(target))
        except OSError as error:
            raise UsageError(
                f"{out}: {error.strerror}",
                expected="a place that can be written",
                way_out="Choose another place with -o.",
            ) from error
        try:
            yield folder
            check_out(out)  # hours may have passed
            put_in_place(folder, target)
        except Exception as error:
            if (cause := _no_room(error)) is None:
                raise
            raise UsageError(
                f"{cause.filename or out}: {cause.strerror}; {out} is as it was",
                expected="room for the bundle",
                way_out="Free some room and go on with --resume, or choose another place with -o.",
            ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`."""
    (folder / MANIFEST).write_bytes(manifest.to_json().encode())


def write_report(folder: Path, report: Mapping[str, Any], html: str) -> None:
    """Write `report.json`, keys sorted, and `report.html`.

    Raises:
        ValueError: the report holds NaN or an infinity, which JSON cannot.
    """
    text = json.dumps(report, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / REPORT).write_bytes(text.encode() + b"\n")
    (folder / REPORT_HTML).write_bytes(html.encode())


def write_golden(folder: Path, golden: Golden, name: str = GOLDEN) -> None:
    """Write golden vectors: `input_0`, …, `output_0`, …, `step`, `tolerance_steps`; no times, no pickle."""
    arrays = {
        **{f"input_{index}": array for index, array in enumerate(golden.inputs)},
        **{f"output_{index}": array for index, array in enumerate(golden.outputs)},
        "step": np.asarray(golden.step, np.float64),
        "tolerance_steps": np.asarray(golden.tolerance_steps, np.float64),
    }
    # Compressed bytes differ between versions of zlib; stored ones do not.
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as archive:
        for key in sorted(arrays):
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(arrays[key]), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, buffer.getvalue())


def read_golden(path: Path) -> Golden:
    """Read golden vectors, as a device does.

    Raises:
        UsageError: it is missing or not what `write_golden` writes.
    """
    try:
        return golden.read_golden(path)
    except ArtifactError as error:
        raise UsageError(error.what, expected=error.expected, way_out=_REWRITE) from error


def _files_below(path: Path) -> Iterator[tuple[bytes, Path]]:
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            each = Path(folder, name)
            if each.is_symlink() or not (each.is_file() or each.is_dir()):
                raise UsageError(
                    f"{each}: neither a file nor a directory",
                    expected="plain files only",
                    way_out="Replace the link by what it points to.",
                )
        for name in names:
            each = Path(folder, name)
            yield each.relative_to(path).as_posix().encode(), each


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.from_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}", expected="a bundle's manifest", way_out=_REWRITE
        ) from error
    except ContractError as error:
        raise UsageError(
            f"{path}: {error.key or 'document'}: {error.found}", expected=error.expected, way_out=_REWRITE
        ) from error


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}", expected="the report in JSON", way_out=_REWRITE) from error
    if not isinstance(report, dict):
        raise UsageError(f"{path}: a {type(report).__name__}", expected="a JSON object", way_out=_REWRITE)
    return report


def _check_artifact(folder: Path, name: str, wanted: Digest) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{path}: leads out of the bundle", expected="a file inside", way_out=_REWRITE)
    if not path.exists():
        raise UsageError(f"{path}: missing", expected="an artifact of the manifest", way_out=_REWRITE)
    found = digest(path)
    if found != wanted:
        raise UsageError(
            f"{path}: sha256 {found.sha256}, {found.size_bytes} bytes",
            expected=f"sha256 {wanted.sha256}, {wanted.size_bytes} bytes as in the manifest",
            way_out=_REWRITE,
        )


def _foreign(out: Path) -> str:
    """Return the first entry of a directory that no bundle of ours accounts for, "" when there is none."""
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not names:
        return ""
    try:
        manifest = Manifest.from_json((out / MANIFEST).read_bytes())
    except (OSError, ContractError):
        return names[0]
    own = _OWN_FILES | {artifact.file.split("/")[0] for artifact in manifest.artifacts}
    return next((name for name in names if name not in own), "")


def _no_room(error: BaseException) -> OSError | None:
    """Find the system's own error below what a writer made of it, if it is that room ran out."""
    current: BaseException | None = error
    for _ in range(32):  # chains are short; a hostile one may be a circle
        if current is None or isinstance(current, UsageError):
            return None
        if isinstance(current, OSError) and current.errno in NO_ROOM:
            return current
        current = current.__cause__ or current.__context__
    return None
