"""The wire types of a bundle: what the workbench writes and a device reads. Standard library only.

A manifest is read from disks and networks that nobody vouches for, so the reader is strict: an unknown key,
a wrong type, a value out of range, a path that leaves the bundle, NaN, a duplicate key, or a document that is
too large or too deep is a `ContractError` that names the key. Writing is canonical: equal manifests are equal
bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit_runtime.strict_json import (
    ContractError,
    Fields,
    check_choice,
    check_file,
    check_pattern,
    check_plain,
    check_text,
    check_unique,
    check_whole,
    is_real,
    parse,
    read_text,
    read_whole,
    show,
    within,
)

__all__ = [
    "Artifact", "Compatibility", "ContractError", "File", "Grid", "Manifest", "Release", "TensorSpec",
]  # fmt: skip

SCHEMA = 1
MAX_RANK = 8
MAX_TENSORS = 256
MAX_FILES = 4096
MANIFEST_FILE = "manifest.json"

FORMATS = ("onnx", "tflite", "coreml")
IO_DTYPES = ("float32", "int8", "uint8")
LAYOUTS = ("nchw", "nhwc")
DTYPES = ("float32", "float16", "int8", "uint8", "int16", "int32", "int64", "bool")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of the model, as the user's model sees it.

    Attributes:
        name: name in every artifact.
        dtype: numpy name of the real values, one of `DTYPES`.
        shape: axis lengths; -1 on axis 0 alone is a batch of any size.
        semantics: what the values mean ("image", "tokens", "logits", …), "" when unknown.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    semantics: str = ""

    def __post_init__(self) -> None:
        check_text("name", self.name, empty=False)
        check_choice("dtype", self.dtype, DTYPES)
        check_text("semantics", self.semantics)
        if len(self.shape) > MAX_RANK:
            raise ContractError("shape", f"rank {len(self.shape)}", f"rank of at most {MAX_RANK}")
        for axis, length in enumerate(self.shape):
            lowest = -1 if axis == 0 else 1
            check_whole(f"shape[{axis}]", length, lowest, 2**31 - 1)
            if length == 0:
                raise ContractError(f"shape[{axis}]", "0", "a length, or -1 for any batch on axis 0")


@dataclass(frozen=True, slots=True)
class Grid:
    """Affine 8-bit grid of a tensor: `real = scale * (q - zero_point)`.

    Attributes:
        scale: real size of one step, finite and above zero.
        zero_point: integer that stands for 0.0, in the integers of the artifact's `io_dtype` (int8 when the
            ends are float32).
    """

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not is_real(self.scale) or self.scale <= 0:
            raise ContractError("scale", show(self.scale), "a finite number above 0")
        check_whole("zero_point", self.zero_point, -128, 255)


@dataclass(frozen=True, slots=True)
class Artifact:
    """One model file (or `.mlpackage` directory) of the bundle.

    Attributes:
        format: one of `FORMATS`.
        file: path inside the bundle with `/`, never absolute, never upwards.
        sha256: hex digest of the file; of a directory as `edgekit.bundle.digest` defines it.
        size_bytes: length of the file, or sum over the files of the directory.
        io_dtype: dtype of the inputs and outputs that have a grid, one of `IO_DTYPES`; others keep their own.
        input_grids: one per input of the manifest, None where it is an index or stays float.
        output_grids: one per output of the manifest.
        input_layout: "nchw": axes as in the manifest; "nhwc": inputs of rank 4 have their channels last.
        golden: file with the vectors of the self-test; artifacts that compute alike share one.
    """

    format: str
    file: str
    sha256: str
    size_bytes: int
    io_dtype: str
    input_grids: tuple[Grid | None, ...]
    output_grids: tuple[Grid | None, ...]
    input_layout: str = "nchw"
    golden: str = "golden.npz"

    def __post_init__(self) -> None:
        check_choice("format", self.format, FORMATS)
        check_file("file", self.file)
        check_file("golden", self.golden)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise ContractError("sha256", show(self.sha256), "64 lower-case hexadecimal digits")
        check_whole("size_bytes", self.size_bytes, 1, 2**53)
        check_choice("io_dtype", self.io_dtype, IO_DTYPES)
        check_choice("input_layout", self.input_layout, LAYOUTS)
        low, high = (0, 255) if self.io_dtype == "uint8" else (-128, 127)
        for key, grids in (("input_grids", self.input_grids), ("output_grids", self.output_grids)):
            for index, grid in enumerate(grids):
                if grid is not None:
                    check_whole(f"{key}[{index}].zero_point", grid.zero_point, low, high)


@dataclass(frozen=True, slots=True)
class Compatibility:
    """What a device must have to run the artifacts.

    Attributes:
        opset: ONNX operator set of the `.onnx` file, None without one.
        minimum_runtime: format to the lowest version of its runtime.
        ops: format to the sorted names of the operators in its file.
        max_latency_ms: median milliseconds of a prediction that a device may take, None where any will do.
    """

    opset: int | None = None
    minimum_runtime: Mapping[str, str] = field(default_factory=dict)
    ops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        if self.max_latency_ms is not None and not (is_real(self.max_latency_ms) and self.max_latency_ms > 0):
            raise ContractError("max_latency_ms", show(self.max_latency_ms), "milliseconds, more than 0")
        if self.opset is not None:
            check_whole("opset", self.opset, 1, 1000)
        for name, version in self.minimum_runtime.items():
            check_choice("minimum_runtime", name, FORMATS)
            check_pattern(f"minimum_runtime.{name}", version, _VERSION, "a version such as 1.20.0")
        for name, ops in self.ops.items():
            check_choice("ops", name, FORMATS)
            for index, op in enumerate(ops):
                check_text(f"ops.{name}[{index}]", op, empty=False)


@dataclass(frozen=True, slots=True)
class Manifest:
    """`manifest.json`: what the bundle holds and how to feed it.

    Attributes:
        name: name of the model.
        version: version of the model, letters, digits and `.+_-`.
        inputs: one per model input.
        outputs: one per model output.
        artifacts: at least one, one per format.
        task: "classification", "detection", …; "" when unknown.
        labels: class names in the order of the output, empty when there are none.
        preprocessing: how raw data becomes the input, plain JSON values.
        compatibility: what a device must have.
        provenance: where the bundle comes from, plain JSON values.
    """

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    artifacts: tuple[Artifact, ...]
    task: str = ""
    labels: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    compatibility: Compatibility = field(default_factory=Compatibility)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("name", self.name, empty=False)
        check_pattern("version", self.version, _VERSION, "letters, digits and .+_-, at most 64")
        check_text("task", self.task)
        for index, label in enumerate(self.labels):
            check_text(f"labels[{index}]", label)
        for key, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not 1 <= len(specs) <= MAX_TENSORS:
                raise ContractError(key, f"{len(specs)} tensors", f"from 1 to {MAX_TENSORS}")
            check_unique(key, [spec.name for spec in specs], "name")
        if not self.artifacts:
            raise ContractError("artifacts", "none", "at least one")
        check_unique("artifacts", [artifact.format for artifact in self.artifacts], "format")
        check_unique("artifacts", [artifact.file for artifact in self.artifacts], "file")
        for index, artifact in enumerate(self.artifacts):
            self._check_grids(index, artifact)
        check_plain("preprocessing", self.preprocessing)
        check_plain("provenance", self.provenance)

    def _check_grids(self, index: int, artifact: Artifact) -> None:
        pairs = (
            ("input_grids", artifact.input_grids, self.inputs),
            ("output_grids", artifact.output_grids, self.outputs),
        )
        for key, grids, specs in pairs:
            if len(grids) != len(specs):
                where = f"artifacts[{index}].{key}"
                raise ContractError(where, f"{len(grids)} entries", f"{len(specs)}, one per tensor")

    def artifact(self, name: str) -> Artifact | None:
        """Return the artifact of the format `name`, None when the bundle has none."""
        return next((each for each in self.artifacts if each.format == name), None)

    def to_json(self) -> str:
        """Return the canonical document: sorted keys, two spaces, UTF-8 text as it is, one final newline."""
        tree = {
            "schema": SCHEMA,
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "inputs": [_spec_tree(spec) for spec in self.inputs],
            "outputs": [_spec_tree(spec) for spec in self.outputs],
            "labels": list(self.labels),
            "preprocessing": dict(self.preprocessing),
            "artifacts": [_artifact_tree(artifact) for artifact in self.artifacts],
            "compatibility": {
                "opset": self.compatibility.opset,
                "minimum_runtime": dict(self.compatibility.minimum_runtime),
                "ops": {name: list(ops) for name, ops in self.compatibility.ops.items()},
                "max_latency_ms": self.compatibility.max_latency_ms,
            },
            "provenance": dict(self.provenance),
        }
        return json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, document: str | bytes) -> Manifest:
        """Read a manifest.

        Args:
            document: the whole of `manifest.json`.

        Raises:
            ContractError: the document breaks the contract; the error names the key.
        """
        top = Fields(parse(document), "", required=_MANIFEST_KEYS)
        schema = top.whole("schema")
        if schema != SCHEMA:
            raise ContractError(
                "schema", str(schema), f"{SCHEMA}; a newer edgekit-runtime may read this bundle"
            )
        return cls(
            name=top.text("name"),
            version=top.text("version"),
            task=top.text("task"),
            inputs=top.each("inputs", _read_spec),
            outputs=top.each("outputs", _read_spec),
            labels=top.each("labels", read_text),
            preprocessing=top.mapping("preprocessing"),
            artifacts=top.each("artifacts", _read_artifact),
            compatibility=_read_compatibility(top.take("compatibility"), "compatibility"),
            provenance=top.mapping("provenance"),
        )


@dataclass(frozen=True, slots=True)
class File:
    """One file of a release.

    Attributes:
        sha256: hex digest of its content.
        size_bytes: its length.
    """

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        check_pattern("sha256", self.sha256, _SHA256, "64 lower-case hexadecimal digits")
        check_whole("size_bytes", self.size_bytes, 0, 2**53)


@dataclass(frozen=True, slots=True)
class Release:
    """`release.json`: one version of a model as it is published, fetched and installed, file by file.

    The hash of this document names the version wherever a device speaks of it, so that one hash vouches for
    everything that the device runs.

    Attributes:
        name: name of the model.
        version: version of the model.
        files: path inside the bundle to file; `manifest.json` is one of them.
    """

    name: str
    version: str
    files: Mapping[str, File]

    def __post_init__(self) -> None:
        check_text("name", self.name, empty=False)
        check_pattern("version", self.version, _VERSION, "letters, digits and .+_-, at most 64")
        if not 1 <= len(self.files) <= MAX_FILES:
            raise ContractError("files", f"{len(self.files)} files", f"from 1 to {MAX_FILES}")
        for path in self.files:
            check_file("files", path)
        if MANIFEST_FILE not in self.files:
            raise ContractError("files", "no manifest.json", "the manifest of the bundle")
        folders = {
            path[:cut] for path in self.files for cut in range(len(path)) if path[cut] == "/"
        }  # fmt: skip
        if both := folders & set(self.files):
            raise ContractError("files", f"{min(both)} as a file and as a folder", "one of them")

    @property
    def id(self) -> str:
        """Sha256 (hex) of the canonical document."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """What the files take on a disk where equal ones are kept once."""
        return sum({file.sha256: file.size_bytes for file in self.files.values()}.values())

    def to_json(self) -> str:
        """Return the canonical document."""
        files = {path: {"sha256": f.sha256, "size_bytes": f.size_bytes} for path, f in self.files.items()}
        tree = {"schema": SCHEMA, "name": self.name, "version": self.version, "files": files}
        return json.dumps(tree, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, document: str | bytes) -> Release:
        """Read a release.

        Args:
            document: the whole of `release.json`.

        Raises:
            ContractError: the document breaks the contract; the error names the key.
        """
        top = Fields(parse(document), "", required=("schema", "name", "version", "files"))
        if (schema := top.whole("schema")) != SCHEMA:
            raise ContractError("schema", str(schema), f"{SCHEMA}; a newer edgekit-runtime may read it")
        files = {path: _read_file(value, f"files.{path}") for path, value in top.mapping("files").items()}
        return cls(name=top.text("name"), version=top.text("version"), files=files)


_MANIFEST_KEYS = (
    *("schema", "name", "version", "task", "inputs", "outputs", "labels"),
    *("preprocessing", "artifacts", "compatibility", "provenance"),
)


def _spec_tree(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape), "semantics": spec.semantics}


def _grid_tree(grid: Grid | None) -> dict[str, Any] | None:
    return None if grid is None else {"scale": float(grid.scale), "zero_point": grid.zero_point}


def _artifact_tree(artifact: Artifact) -> dict[str, Any]:
    return {
        "format": artifact.format,
        "file": artifact.file,
        "sha256": artifact.sha256,
        "size_bytes": artifact.size_bytes,
        "io_dtype": artifact.io_dtype,
        "input_grids": [_grid_tree(grid) for grid in artifact.input_grids],
        "output_grids": [_grid_tree(grid) for grid in artifact.output_grids],
        "input_layout": artifact.input_layout,
        "golden": artifact.golden,
    }


def _read_spec(value: object, path: str) -> TensorSpec:
    fields = Fields(value, path, required=("name", "dtype", "shape", "semantics"))
    shape = fields.each("shape", read_whole)
    name, dtype, semantics = fields.text("name"), fields.text("dtype"), fields.text("semantics")
    return within(path, lambda: TensorSpec(name=name, dtype=dtype, shape=shape, semantics=semantics))


def _read_grid(value: object, path: str) -> Grid | None:
    if value is None:
        return None
    fields = Fields(value, path, required=("scale", "zero_point"))
    scale, zero_point = fields.real("scale"), fields.whole("zero_point")
    return within(path, lambda: Grid(scale=scale, zero_point=zero_point))


def _read_artifact(value: object, path: str) -> Artifact:
    texts = ("format", "file", "sha256", "io_dtype", "input_layout", "golden")
    fields = Fields(value, path, required=(*texts, "size_bytes", "input_grids", "output_grids"))
    text = {key: fields.text(key) for key in texts}
    size = fields.whole("size_bytes")
    inputs, outputs = fields.each("input_grids", _read_grid), fields.each("output_grids", _read_grid)
    return within(path, lambda: Artifact(**text, size_bytes=size, input_grids=inputs, output_grids=outputs))


def _read_file(value: object, path: str) -> File:
    fields = Fields(value, path, required=("sha256", "size_bytes"))
    sha256, size = fields.text("sha256"), fields.whole("size_bytes")
    return within(path, lambda: File(sha256=sha256, size_bytes=size))


def _read_compatibility(value: object, path: str) -> Compatibility:
    # Manifests of before there was a limit have none.
    fields = Fields(value, path, required=("opset", "minimum_runtime", "ops"), optional=("max_latency_ms",))
    opset = None if fields.take("opset") is None else fields.whole("opset")
    limited = "max_latency_ms" in fields.names and fields.take("max_latency_ms") is not None
    latency = fields.real("max_latency_ms") if limited else None
    runtimes = fields.mapping("minimum_runtime")
    versions = {name: read_text(each, f"{path}.minimum_runtime.{name}") for name, each in runtimes.items()}
    formats = Fields(fields.take("ops"), f"{path}.ops", required=(), optional=FORMATS)
    ops = {name: formats.each(name, read_text) for name in formats.names}
    return within(path, lambda: Compatibility(opset, versions, ops, latency))
