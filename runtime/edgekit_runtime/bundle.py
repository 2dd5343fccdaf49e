"""A bundle on disk as a device takes it: the files that its manifest names, none that lead elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit_runtime.contract import Artifact, ContractError, File, Manifest, Release
from edgekit_runtime.disk import hash_file, parts_of
from edgekit_runtime.errors import ArtifactError, InputError

MANIFEST: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 4 << 20

Locate = Callable[[str], Path]
"""Path inside the bundle → where that file lies."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A directory with a manifest.

    Attributes:
        path: of the directory.
        manifest: read and checked.
    """

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path) -> Bundle:
        """Read the manifest of a directory.

        Raises:
            InputError: there is nothing of this name.
            ArtifactError: there is none, or it breaks the contract.
        """
        if not os.path.lexists(path):
            raise _nothing(path)
        # A pipe in its place would be waited for, a link would be followed.
        file = _located(path, MANIFEST)
        try:
            with file.open("rb") as stream:
                return Bundle(path, Manifest.from_json(stream.read(MAX_MANIFEST_BYTES + 1)))
        except OSError as error:
            raise _no_bundle(file, error.strerror or str(error)) from error
        except ContractError as error:
            raise _no_bundle(file, str(error)) from error

    def locate(self, name: str) -> Path:
        """Where a file of the bundle lies.

        Raises:
            ArtifactError: it is missing, or a link, which could lead anywhere.
        """
        return _located(self.path, name)

    def release(self) -> Release:
        """The release that this bundle is: what a device needs of it, by hash.

        Raises:
            ArtifactError: a file is missing, is no plain file, has a name that no release may hold, or is not what the
                manifest says.
        """
        names = {MANIFEST}
        for artifact in self.manifest.artifacts:
            check_artifact(artifact, self.locate(artifact.file))
            names |= {artifact.golden, *self._below(artifact.file)}
        files = {name: self._file(name) for name in sorted(names)}
        try:
            return Release(self.manifest.name, self.manifest.version, files)
        except ContractError as error:
            raise _no_bundle(self.path, str(error)) from error

    def read(self, name: str) -> Iterator[bytes]:
        """The content of a file, in parts."""
        yield from parts_of(self.locate(name))

    def _file(self, name: str) -> File:
        path = self.locate(name)
        try:
            return File(hash_file(path), path.stat().st_size)
        except OSError as error:
            raise _no_bundle(path, error.strerror or str(error)) from error

    def _below(self, name: str) -> Iterator[str]:
        place = self.locate(name)
        if place.is_file():
            yield name
            return
        for folder, _, files in os.walk(place):
            for file in files:
                yield Path(folder, file).relative_to(self.path).as_posix()


def locate_in(release: Release, blob: Callable[[str], Path]) -> Locate:
    """Where the files of a release lie among the blobs of a store."""
    files: Mapping[str, File] = release.files

    def locate(name: str) -> Path:
        if name not in files:
            raise ArtifactError(
                f"the release has no {name}",
                expected=f"one of {', '.join(sorted(files)[:8])}",
                way_out="Publish the bundle again.",
                code="missing",
            )
        return blob(files[name].sha256)

    return locate


def check_release(release: Release, manifest: Manifest) -> None:
    """Hold what a manifest says of itself and of its files against the release that all are part of.

    Raises:
        ArtifactError: it is of another model or version; a file is not in the release, or is another there.
    """
    if (release.name, release.version) != (manifest.name, manifest.version):
        raise ArtifactError(
            f"the release of {release.name} {release.version} holds {manifest.name} {manifest.version}",
            expected="a manifest of the same name and version",
            way_out="Publish the bundle under the name and version that its manifest has.",
            code="manifest",
        )
    for artifact in manifest.artifacts:
        file = release.files.get(artifact.file)
        if artifact.format == "coreml" and file is None:
            there = any(path.startswith(f"{artifact.file}/") for path in release.files)
        else:
            there = file == File(artifact.sha256, artifact.size_bytes)
        if not there or artifact.golden not in release.files:
            raise ArtifactError(
                f"{release.name} {release.version} lacks the {artifact.format} file of its manifest, or known answers",
                expected=f"{artifact.file} with the hash {artifact.sha256[:16]}…, and {artifact.golden}",
                way_out="Publish the bundle again, whole.",
                code="manifest",
            )


def check_artifact(artifact: Artifact, path: Path) -> None:
    """Hold a model file against its manifest; of a package, its files vouch for themselves in the release.

    Raises:
        ArtifactError: another length or hash.
    """
    if path.is_dir():
        return
    try:
        size, found = path.stat().st_size, hash_file(path)
    except OSError as error:
        raise _no_bundle(path, error.strerror or str(error)) from error
    if size != artifact.size_bytes or found != artifact.sha256:
        raise ArtifactError(
            f"{path}: {size:,} bytes with the hash {found[:16]}…",
            expected=f"{artifact.size_bytes:,} bytes with the hash {artifact.sha256[:16]}…, as the manifest says",
            way_out="Copy the bundle again, whole.",
            code="damaged",
        )


def _located(folder: Path, name: str) -> Path:
    place = folder
    for part in name.split("/"):
        place /= part
        try:
            mode = place.lstat().st_mode
        except OSError as error:
            raise _no_bundle(place, error.strerror or str(error)) from error
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise _no_bundle(place, "is neither a file nor a directory")
    return place


def _nothing(path: Path) -> InputError:
    return InputError(
        f"{path}: there is nothing of this name",
        expected="a bundle: a directory that `edgekit compress` wrote",
        way_out="Look for a slip in the name.",
        code="input",
    )


def _no_bundle(path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {found}",
        expected="a bundle: a directory that `edgekit compress` wrote",
        way_out="Copy the bundle again, whole.",
        code="bundle",
    )
