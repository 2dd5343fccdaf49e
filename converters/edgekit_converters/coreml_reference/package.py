"""Reads the files of a Core ML package: the model specification and the weight blobs."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit_converters.errors import LoweringError

# MIL blob storage: every blob starts with 64 bytes of metadata, of which the first 24 are
# sentinel (u32), data type (u32), size in bytes (u64), offset of the data (u64), little endian.
BLOB_SENTINEL = 0xDEADBEEF
BLOB_METADATA = struct.Struct("<IIQQ")


def broken_package(path: Path | str, why: str) -> LoweringError:
    """Makes the error for a package that is not one, or is damaged."""
    return LoweringError(
        format="coreml",
        op="the package",
        where=str(path),
        why=why,
        way_out="Give a directory written by `edgekit compress --format coreml`, whole and unchanged.",
    )


@dataclass(frozen=True)
class Package:
    """A package in memory.

    Attributes:
        path: its directory.
        spec: `Model` protobuf message holding an ML program.
        weights: the bytes of `weight.bin`, empty when the model has none.
    """

    path: Path
    spec: Any
    weights: NDArray[np.uint8]

    def blob(self, offset: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Reads one blob.

        Args:
            offset: of the blob's metadata in the weight file.
            dtype: element type that the program expects.
            count: number of elements that the program expects.

        Returns:
            Flat array, a view into the file's bytes.

        Raises:
            LoweringError: the blob lies outside of the file or is not what the program says.
        """
        end = offset + BLOB_METADATA.size
        if not 0 <= offset <= end <= self.weights.size:
            raise broken_package(self.path, f"weight at byte {offset} of {self.weights.size} does not exist")
        sentinel, _, size, start = BLOB_METADATA.unpack(self.weights[offset:end].tobytes())
        if sentinel != BLOB_SENTINEL:
            raise broken_package(self.path, f"no weight starts at byte {offset}")
        if size != count * dtype.itemsize or start + size > self.weights.size:
            raise broken_package(
                self.path, f"weight at byte {offset} has {size} bytes at {start}, expected {count} × {dtype}"
            )
        return self.weights[start : start + size].view(dtype)


def read_package(path: Path) -> Package:
    """Reads a `.mlpackage` directory.

    Args:
        path: the directory.

    Returns:
        Its specification and weights.

    Raises:
        LoweringError: it is not a Core ML package with an ML program, or is damaged; or coremltools, which
            brings the
            protobuf schema, is not installed.
    """
    from edgekit_converters.coreml.quiet import import_coremltools

    proto = import_coremltools().proto
    data = path / "Data"
    root = _contained(data, _root_item(path))
    spec = proto.Model_pb2.Model()
    try:
        spec.ParseFromString(root.read_bytes())
    except OSError as error:
        raise broken_package(path, f"its model cannot be read ({error})") from error
    except Exception as error:  # protobuf raises a DecodeError of its C implementation
        raise broken_package(path, f"its model is not a Core ML specification ({error})") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise broken_package(path, f"it holds a {spec.WhichOneof('Type')}, expected an mlProgram")
    weight_file = root.parent / "weights" / "weight.bin"
    weights = np.fromfile(weight_file, np.uint8) if weight_file.is_file() else np.empty(0, np.uint8)
    return Package(path, spec, weights)


def _root_item(path: Path) -> str:
    try:
        manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
        item = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except OSError as error:
        raise broken_package(path, f"its Manifest.json cannot be read ({error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise broken_package(path, f"its Manifest.json is not a package manifest ({error!r})") from error
    if not isinstance(item, str):
        raise broken_package(path, f"its Manifest.json names {item!r} as the model")
    return item


def _contained(folder: Path, name: str) -> Path:
    # The manifest is untrusted; a path like ../../etc/passwd must not leave the package.
    target = (folder / name).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise broken_package(folder.parent, f"its Manifest.json points outside, to {name!r}")
    return target
