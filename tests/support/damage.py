"""Damages to a bundle, by name: what breaks on the way, and what a publisher who lies may sign.

Each takes the content of a whole bundle and gives a damaged one. All of it is the same on every run.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from edgekit_runtime.contract import Artifact, ContractError, File, Grid, Manifest, Release, TensorSpec
from support.adders import WIDTH, adder
from support.releases import Published

Content = dict[str, bytes]
Damage = Callable[[Content], Content]
Bytes = Callable[[bytes], bytes]

MODEL = {"onnx": "model.onnx", "tflite": "model.tflite"}
HUGE = 2**31 - 1
GONE = object()


# What is damaged


@cache
def whole(format: str, constant: float = 2.5) -> Content:
    """A bundle that is all right.

    Args:
        format: of its one model file.
        constant: of the adder in ONNX; in TFLite, 0 is another model than the rest.
    """
    return _onnx(constant) if format == "onnx" else _tflite(1 if constant else 2)


def _onnx(constant: float) -> Content:
    x = np.random.default_rng(0).normal(size=(2, WIDTH)).astype(np.float32)
    # The adder's own known answers would let half a unit pass.
    return {**adder(constant).content, "golden.npz": known(x, x + np.float32(constant), step=0.01)}


def _tflite(axis: int) -> Content:
    """x → 4 cumsum(x) → int8, with float32 at one end and a grid at the other."""
    from edgekit_runtime.model import Model
    from support.tiny_files import write_tflite

    shape = (1, 4, 4, 8)
    x = np.random.default_rng(0).normal(size=(2, *shape[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = write_tflite(Path(folder) / "model.tflite")
        path.write_bytes(
            tflite_of(lambda model, _: setattr(model.buffers[1], "data", bytes_of(np.int32(axis))))(
                path.read_bytes()
            )
        )
        model, y = path.read_bytes(), Model.load(path).predict_batch(x)
    artifact = Artifact(
        "tflite", "model.tflite", sha256_of(model), len(model), "int8", (None,), (Grid(0.1, 0),)
    )
    specs = [(TensorSpec(name, "float32", shape),) for name in ("x", "z")]
    manifest = Manifest("sums", "1.0.0", *specs, (artifact,))
    return {
        "manifest.json": manifest.to_json().encode(), "model.tflite": model, "golden.npz": known(x, y, step=0.1),
    }  # fmt: skip


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def arrays_of(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data)) as found:
        return dict(found)


def known(x: np.ndarray, y: np.ndarray, *, step: float) -> bytes:
    return npz(input_0=x, output_0=y, step=np.array([step]), tolerance_steps=np.array([1.0]))


def publish(content: Content) -> Published:
    """The release of any content, with hashes that fit, under the name of its manifest where that can be read."""
    name, version = "damaged", "1.0.0"
    with suppress(KeyError, ContractError):
        manifest = Manifest.from_json(content["manifest.json"])
        name, version = manifest.name, manifest.version
    files = {path: File(sha256_of(data), len(data)) for path, data in content.items()}
    return Published(Release(name, version, files), content)


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# How


def flipped(data: bytes, share: float, bit: int) -> bytes:
    """One bit the other way round, at a share of the length."""
    at = int(share * len(data))
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def flip(k: int, n: int) -> Bytes:
    return lambda data: flipped(data, (k + 0.5) / n, k % 8)


def cut(length: int | float) -> Bytes:
    """To so many bytes; from the end where negative, to a share of them where it is no whole number."""
    return lambda data: data[: length if isinstance(length, int) else int(length * len(data))]


def in_file(name: str, change: Bytes) -> Damage:
    """Change one file, and nothing that speaks of it."""
    return lambda content: {**content, name: change(content[name])}


def in_model(change: Bytes) -> Damage:
    """Change the model, and let the manifest vouch for what came of it."""

    def damage(content: Content) -> Content:
        (name,) = MODEL.values() & content.keys()
        data = change(content[name])
        tree = json.loads(content["manifest.json"])
        tree["artifacts"][0] |= {"sha256": sha256_of(data), "size_bytes": max(1, len(data))}
        return {**content, name: data, "manifest.json": json.dumps(tree).encode()}

    return damage


def in_tree(path: str, value: Any) -> Bytes:
    """Another value in a JSON document; a key without one goes."""

    def change(document: bytes) -> bytes:
        tree = json.loads(document)
        *above, last = [int(part) if part.isdecimal() else part for part in path.split("/")]
        place = tree
        for part in above:
            place = place[part]
        if value is GONE:
            del place[last]
        else:
            place[last] = value
        return json.dumps(tree).encode()

    return change


def onnx_of(change: Callable[[ModelProto], object]) -> Bytes:
    def damage(data: bytes) -> bytes:
        model = ModelProto.FromString(data)
        change(model)
        return bytes(model.SerializeToString())

    return damage


def tflite_of(change: Callable[[Any, Any], object]) -> Bytes:
    """`change` gets the model as objects, and its one graph."""

    def damage(data: bytes) -> bytes:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        model = schema.ModelT.InitFromPackedBuf(data)
        change(model, model.subgraphs[0])
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    return damage


def bytes_of(value: np.generic) -> np.ndarray:
    return np.frombuffer(value.tobytes(), np.uint8)


OTHER_CONTENT: dict[str, Bytes] = {
    "a picture": lambda _: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(64)),
    "a program": lambda _: b"\x7fELF\x02\x01\x01" + bytes(57),
    "text": lambda _: b"404 Not Found\n",
    "a page": lambda _: b"<!DOCTYPE html><title>Sign in</title>",
    "an archive": lambda _: npz(x=np.zeros(3)),
    "a script": lambda _: b"#!/bin/sh\nexit 0\n",
    "zeros": lambda data: bytes(len(data)),
    "ones": lambda data: b"\xff" * len(data),
    "backwards": lambda data: data[::-1],
    "one byte more": lambda data: data + b"\0",
    "twice": lambda data: data * 2,
}


# What breaks on the way: hashes are those of the whole bundle

CUTS = (0, 1, 7, 0.25, 0.5, 0.75, -1)
IN_TRANSFER: dict[tuple[str, str], Damage] = {
    **{
        (format, f"{name}: bit flip {k}"): in_file(name, flip(k, n))
        for format, name, n in (
            ("onnx", "model.onnx", 16), ("onnx", "golden.npz", 10), ("onnx", "manifest.json", 12),
            ("tflite", "model.tflite", 16), ("tflite", "golden.npz", 6),
        )
        for k in range(n)
    },
    **{
        (format, f"{name}: cut to {length}"): in_file(name, cut(length))
        for format, name in (
            ("onnx", "model.onnx"), ("onnx", "golden.npz"), ("onnx", "manifest.json"), ("tflite", "model.tflite"),
        )
        for length in CUTS
    },
    **{
        (format, f"{name}: {other}"): in_file(name, change)
        for format, name in (("onnx", "model.onnx"), ("onnx", "golden.npz"), ("tflite", "model.tflite"))
        for other, change in OTHER_CONTENT.items()
    },
}  # fmt: skip
