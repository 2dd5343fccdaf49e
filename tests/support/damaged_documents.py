"""Manifests and documents of a release that break the contract, or keep it and lie all the same, by name."""

from __future__ import annotations

import json
from typing import Any

from support.damage import GONE, HUGE, Bytes, Damage, cut, in_file, in_tree

# Paths that lead elsewhere, or mean something else on another system

PATHS = (
    "/etc/passwd", "//etc/passwd", "../model.onnx", "../../../../etc/passwd", "a/../../model.onnx", "..", ".",
    "./model.onnx", "a/./b", "a//b", "model.onnx/", "C:\\model.onnx", "C:model.onnx", "a\\..\\b", "\\\\server\\share",
    "file:///etc/passwd", ".hidden", "", " ", "a\0b", "a\nb", "a\x1b[2Jb", "x" * 256, "é" * 128,
)  # fmt: skip


# Manifests that break the contract

GRID = {"scale": 0.1, "zero_point": 0}
MANIFEST_VALUES: tuple[tuple[str, Any], ...] = (
    *(("schema", value) for value in (0, 2, -1, "1", 1.5, True, None, 10**30)),
    *(("name", value) for value in ("", "  ", 7, None, "a\nb", "a\x1b[31m", "x" * 5000, ["a"])),
    *(("version", value) for value in ("", "../1", "1 2", "1;rm", "v" * 65, 1.0, "-1")),
    *(("inputs", value) for value in ([], {}, None, "x", [[]], [{}])),
    *(("inputs/0/name", value) for value in ("", 5, "x\0", "\ud800")),
    *(("inputs/0/dtype", value) for value in ("float128", "object", "O", "<U8", "", None, ["float32"])),
    *(
        ("inputs/0/shape", value)
        for value in (
            [0, 16], [-2, 16], [-1, -1], [-1, 0], [-1, HUGE + 1], [-1, 10**30], [HUGE + 1, 16], [-1, 16.5],
            [-1, "16"], [True, 16], [1] * 9, 16, "16", None, [[-1, 16]],
        )
    ),
    *(("outputs/0/shape", value) for value in ([-1, 2**63], [-1, -16], {})),
    *(("artifacts", value) for value in ([], {}, None, [None])),
    *(("artifacts/0/format", value) for value in ("exe", "ONNX", "", None, "onnx ")),
    *(("artifacts/0/sha256", value) for value in ("", "0" * 63, "A" * 64, "g" * 64, None, 0)),
    *(("artifacts/0/size_bytes", value) for value in (0, -1, 2**53 + 1, 10**400, 90.0, "90", None, True)),
    *(("artifacts/0/io_dtype", value) for value in ("float16", "int4", "", None)),
    *(("artifacts/0/input_layout", value) for value in ("NCHW", "chwn", None)),
    *(
        ("artifacts/0/input_grids", value)
        for value in (
            [], [None, None], [{}], [{**GRID, "scale": 0}], [{**GRID, "scale": -1}], [{**GRID, "scale": "1"}],
            [{**GRID, "scale": 10**400}], [{**GRID, "zero_point": 256}], [{**GRID, "zero_point": -129}],
            [{**GRID, "zero_point": 0.5}], [{**GRID, "more": 1}], None,
        )
    ),
    *(("labels", value) for value in ("cat", [1], [None], ["a\x07"], ["x" * 5000], {})),
    *(("preprocessing", value) for value in ([], None, {"": 1}, {"a": "\x1b[2J"}, {"a": [[[[[[[[[[[1]]]]]]]]]]]})),
    *(("compatibility/max_latency_ms", value) for value in (0, -1, "1", [1], True, 10**400)),
    *(("compatibility/opset", value) for value in (0, 1001, -5, "18", 1.5, True)),
    *(
        ("compatibility/minimum_runtime", value)
        for value in ({"exe": "1"}, {"onnx": 1}, {"onnx": "1; rm"}, {"onnx": ""}, {"\x1b]0;a\x07": 1}, [])
    ),
    *(("compatibility/ops", value) for value in ({"exe": []}, {"onnx": [1]}, {"onnx": [""]}, {"onnx": "Add"}, [])),
    *(("provenance", value) for value in (None, "me", {"a\n": 1})),
    *(("more", 1), ("__proto__", {}), ("artifacts/0/more", 1), ("inputs/0/more", 1)),
    *((key, GONE) for key in ("schema", "name", "inputs", "outputs", "artifacts", "compatibility", "provenance")),
    *((f"artifacts/0/{key}", GONE) for key in ("file", "sha256", "golden", "io_dtype")),
)  # fmt: skip


def _instead(old: str, new: str) -> Bytes:
    def change(document: bytes) -> bytes:
        text = document.decode()
        assert old in text
        return text.replace(old, new, 1).encode()

    return change


DOCUMENTS: dict[str, Bytes] = {
    "no bytes": lambda _: b"",
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "a number": lambda _: b"1e5",
    "half": cut(0.5),
    "all but its last brace": lambda data: data.rstrip()[:-1],
    "two documents": lambda data: data * 2,
    "with a comment": lambda data: b"// v1\n" + data,
    "in single quotes": lambda data: data.replace(b'"', b"'"),
    "in UTF-16": lambda data: data.decode().encode("utf-16"),
    "with a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "with a byte that is no UTF-8": lambda data: data.replace(b"1.0", b"1.\xff", 1),
    "with a zero byte": lambda data: data.replace(b"{", b"{\0", 1),
    "a key twice": _instead('"name"', '"name": "another", "name"'),
    "the schema twice": _instead('"schema"', '"schema": 1, "schema"'),
    "NaN": _instead('"schema": 1', '"schema": NaN'),
    "Infinity": _instead('"schema": 1', '"schema": Infinity'),
    "a number beyond float": _instead('"schema": 1', '"schema": 1e999'),
    "a number of 5000 digits": _instead('"schema": 1', f'"schema": {"1" * 5000}'),
    "a hundred thousand brackets": lambda _: b"[" * 100_000,
    "a hundred thousand objects": lambda _: b'{"a":' * 100_000,
    "nested too deep": _instead('"schema": 1', '"schema": ' + "[" * 13 + "]" * 13),
    "text without an end": lambda data: data.replace(b'"schema"', b'"schema', 1)[:-2],
    "an endless escape": lambda _: b'"' + b"\\" * 100_001,
    "five megabytes of blanks": lambda data: b" " * (5 << 20) + data,
    "a text of five megabytes": _instead('"schema": 1', f'"schema": "{"x" * (5 << 20)}"'),
}  # fmt: skip

MANIFESTS: dict[str, Damage] = {
    **{
        f"{path} {'gone' if value is GONE else ascii(value)[:24]} {k}": in_file(
            "manifest.json", in_tree(path, value)
        )
        for k, (path, value) in enumerate(MANIFEST_VALUES)
    },
    **{name: in_file("manifest.json", change) for name, change in DOCUMENTS.items()},
    **{
        f"{key} at {ascii(path)[:24]}": in_file("manifest.json", in_tree(f"artifacts/0/{key}", path))
        for key in ("file", "golden")
        for path in PATHS
    },
    "an input twice": in_file(
        "manifest.json",
        lambda data: in_tree("inputs", json.loads(data)["inputs"] * 2)(data),
    ),
    "257 inputs": in_file(
        "manifest.json",
        lambda data: in_tree(
            "inputs", [{**json.loads(data)["inputs"][0], "name": f"x{k}"} for k in range(257)]
        )(data),
    ),
    "a format twice": in_file(
        "manifest.json",
        lambda data: in_tree(
            "artifacts", [{**json.loads(data)["artifacts"][0], "file": name} for name in ("a", "b")]
        )(data),
    ),
}


# Documents of a release that break the contract

A_FILE = {"sha256": "0" * 64, "size_bytes": 1}
RELEASES: dict[str, Bytes] = {
    **{f"a file at {ascii(path)[:24]}": in_tree("files", {"manifest.json": A_FILE, path: A_FILE}) for path in PATHS},
    **{
        f"{path} {'gone' if value is GONE else ascii(value)[:24]}": in_tree(path, value)
        for path, value in (
            ("schema", 2), ("schema", "1"), ("schema", GONE), ("name", ""), ("name", None), ("name", "a\x1b[2J"),
            ("version", "../.."), ("version", "v" * 65), ("files", []), ("files", {}), ("files", None),
            ("files", {"model.onnx": A_FILE}), ("files/manifest.json", GONE), ("files/manifest.json", None),
            ("files/manifest.json/sha256", "../" * 21), ("files/manifest.json/sha256", "0" * 63),
            ("files/manifest.json/sha256", None), ("files/manifest.json/size_bytes", -1),
            ("files/manifest.json/size_bytes", 2**53 + 1), ("files/manifest.json/size_bytes", 1.5),
            ("files/manifest.json/size_bytes", "1"), ("files/manifest.json/size_bytes", 10**400),
            ("files/manifest.json/more", 1), ("files/a\x1b[2J", {}), ("more", 1),
        )
    },
    "a file that is a folder": in_tree("files", {"manifest.json": A_FILE, "a": A_FILE, "a/b": A_FILE}),
    "4097 files": in_tree("files", {"manifest.json": A_FILE, **{str(k): A_FILE for k in range(4096)}}),
    **DOCUMENTS,
}  # fmt: skip


# Manifests that keep the contract and lie all the same

LIES: dict[tuple[str, str], Bytes] = {
    ("onnx", "another input"): in_tree("inputs/0/name", "z"),
    ("onnx", "another output"): in_tree("outputs/0/name", "z"),
    ("onnx", "names changed about"): lambda data: in_tree("outputs/0/name", "x")(in_tree("inputs/0/name", "y")(data)),
    ("onnx", "an input too wide"): in_tree("inputs/0/shape", [-1, 17]),
    ("onnx", "an input of 2^31 - 1"): in_tree("inputs/0/shape", [-1, HUGE]),
    ("onnx", "a batch of 2^31 - 1"): in_tree("inputs/0/shape", [HUGE, 16]),
    ("onnx", "an input of 2^248 numbers"): in_tree("inputs/0/shape", [HUGE] * 8),
    ("onnx", "an input of rank 0"): in_tree("inputs/0/shape", []),
    ("onnx", "an output of 2^31 - 1"): in_tree("outputs/0/shape", [-1, HUGE]),
    ("onnx", "whole numbers as input"): in_tree("inputs/0/dtype", "int64"),
    ("onnx", "whole numbers as output"): in_tree("outputs/0/dtype", "int64"),
    ("onnx", "truth as output"): in_tree("outputs/0/dtype", "bool"),
    ("onnx", "a runtime of the far future"): in_tree("compatibility/minimum_runtime", {"onnx": "9999.0"}),
    ("onnx", "a latency that no chip reaches"): in_tree("compatibility/max_latency_ms", 1e-9),
    ("onnx", "preparations that nobody knows"): in_tree("preprocessing", {"warp": 1}),
    ("onnx", "pixels without end"): in_tree("preprocessing", {"resize": 10**9}),
    ("onnx", "colours that nobody knows"): in_tree("preprocessing", {"color": "CMYK"}),
    ("onnx", "a deviation of zero"): in_tree("preprocessing", {"std": [0.0]}),
    ("onnx", "another format"): in_tree("artifacts/0/format", "tflite"),
    ("onnx", "a format for another system"): in_tree("artifacts/0/format", "coreml"),
    ("onnx", "itself as the model"): in_tree("artifacts/0/file", "manifest.json"),
    ("onnx", "itself as known answers"): in_tree("artifacts/0/golden", "manifest.json"),
    ("onnx", "the model as known answers"): in_tree("artifacts/0/golden", "model.onnx"),
    ("onnx", "known answers that are not there"): in_tree("artifacts/0/golden", "none.npz"),
    ("onnx", "a model that is not there"): in_tree("artifacts/0/file", "none.onnx"),
    ("onnx", "a model inside the model"): in_tree("artifacts/0/file", "model.onnx/model.onnx"),
    ("onnx", "another hash"): in_tree("artifacts/0/sha256", "0" * 64),
    ("onnx", "another size"): in_tree("artifacts/0/size_bytes", 91),
    ("onnx", "a size of 2^53"): in_tree("artifacts/0/size_bytes", 2**53),
    ("tflite", "another format"): in_tree("artifacts/0/format", "onnx"),
    ("tflite", "another step"): in_tree("artifacts/0/output_grids/0/scale", 0.2),
    ("tflite", "a step of 1e-300"): in_tree("artifacts/0/output_grids/0/scale", 1e-300),
    ("tflite", "a step of 1e300"): in_tree("artifacts/0/output_grids/0/scale", 1e300),
    ("tflite", "another zero"): in_tree("artifacts/0/output_grids/0/zero_point", 10),
    ("tflite", "no grid"): in_tree("artifacts/0/output_grids", [None]),
    ("tflite", "other integers"): in_tree("artifacts/0/io_dtype", "uint8"),
    ("tflite", "channels last"): in_tree("artifacts/0/input_layout", "nhwc"),
    ("tflite", "axes changed about"): in_tree("inputs/0/shape", [1, 8, 4, 4]),
    ("tflite", "a rank too many"): in_tree("inputs/0/shape", [1, 4, 4, 8, 1]),
}  # fmt: skip
