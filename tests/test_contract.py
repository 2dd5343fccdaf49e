"""The manifest: what is written comes back; what breaks the contract is refused by the name of its key."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit_runtime import contract, strict_json
from edgekit_runtime.contract import Artifact, Compatibility, ContractError, Grid, Manifest, TensorSpec

DIGEST = "0123456789abcdef" * 4


def manifest() -> Manifest:
    artifact = Artifact(
        format="tflite",
        file="model.tflite",
        sha256=DIGEST,
        size_bytes=1234,
        io_dtype="float32",
        input_grids=(Grid(0.25, -3), None),
        output_grids=(Grid(1 / 256, -128),),
        input_layout="nhwc",
    )
    return Manifest(
        name="größe",
        version="1.0.0",
        inputs=(TensorSpec("x", "float32", (-1, 3, 8, 8), "image"), TensorSpec("tokens", "int64", (-1, 4))),
        outputs=(TensorSpec("probabilities", "float32", (-1, 10), "probabilities"),),
        artifacts=(artifact, replace(artifact, format="coreml", file="model.mlpackage")),
        task="classification",
        labels=("kéfir", "猫"),
        preprocessing={"resize": 8, "mean": [0.5, 0.5, 0.5], "color": "rgb", "crop": None},
        compatibility=Compatibility(18, {"onnx": "1.20.0"}, {"tflite": ("ADD", "CONV_2D")}, 12.5),
        provenance={"seed": 0, "versions": {"torch": "2.13.0"}},
    )


def changed(*path: str | int, value: object = None, drop: bool = False) -> str:
    """The valid document with one value changed or dropped."""
    tree: Any = json.loads(manifest().to_json())
    node = tree
    for key in path[:-1]:
        node = node[key]
    if drop:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return json.dumps(tree)


def test_what_is_written_comes_back_the_same() -> None:
    assert Manifest.from_json(manifest().to_json()) == manifest()
    assert Manifest.from_json(manifest().to_json().encode()) == manifest()


def test_the_document_is_canonical() -> None:
    document = manifest().to_json()
    assert Manifest.from_json(document).to_json() == document
    assert document.endswith("}\n")
    assert "猫" in document
    shuffled = json.dumps(dict(reversed(json.loads(document).items())))
    assert Manifest.from_json(shuffled).to_json() == document


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("extra",), 1, "extra"),
        (("inputs", 0, "extra"), 1, "inputs[0].extra"),
        (("artifacts", 0, "input_grids", 0, "offset"), 1, "artifacts[0].input_grids[0].offset"),
        (("schema",), 2, "schema"),
        (("name",), 3, "name"),
        (("name",), " ", "name"),
        (("name",), "a\x00b", "name"),
        (("name",), "\ud800", "name"),
        (("version",), "1/2", "version"),
        (("inputs",), [], "inputs"),
        (("inputs",), {}, "inputs"),
        (("inputs", 0, "dtype"), "float8", "inputs[0].dtype"),
        (("inputs", 0, "shape"), [3, -1], "inputs[0].shape[1]"),
        (("inputs", 0, "shape"), [0], "inputs[0].shape[0]"),
        (("inputs", 0, "shape"), [True], "inputs[0].shape[0]"),
        (("inputs", 0, "shape"), [1.0], "inputs[0].shape[0]"),
        (("inputs", 0, "shape"), [1] * 9, "inputs[0].shape"),
        (("inputs", 1, "name"), "x", "inputs[1].name"),
        (("labels", 1), 7, "labels[1]"),
        (("artifacts",), [], "artifacts"),
        (("artifacts", 0), None, "artifacts[0]"),
        (("artifacts", 1, "format"), "tflite", "artifacts[1].format"),
        (("artifacts", 1, "file"), "model.tflite", "artifacts[1].file"),
        (("artifacts", 0, "format"), "pickle", "artifacts[0].format"),
        (("artifacts", 0, "sha256"), DIGEST.upper(), "artifacts[0].sha256"),
        (("artifacts", 0, "size_bytes"), 0, "artifacts[0].size_bytes"),
        (("artifacts", 0, "size_bytes"), True, "artifacts[0].size_bytes"),
        (("artifacts", 0, "io_dtype"), "int4", "artifacts[0].io_dtype"),
        (("artifacts", 0, "input_layout"), "NHWC", "artifacts[0].input_layout"),
        (("artifacts", 0, "input_grids"), [None], "artifacts[0].input_grids"),
        (("artifacts", 0, "input_grids", 0, "scale"), 0, "artifacts[0].input_grids[0].scale"),
        (("artifacts", 0, "input_grids", 0, "scale"), "1", "artifacts[0].input_grids[0].scale"),
        (("artifacts", 0, "input_grids", 0, "scale"), 10**400, "artifacts[0].input_grids[0].scale"),
        (("artifacts", 0, "input_grids", 0, "zero_point"), 200, "artifacts[0].input_grids[0].zero_point"),
        (("artifacts", 0, "io_dtype"), "uint8", "artifacts[0].input_grids[0].zero_point"),
        (("compatibility", "opset"), 0, "compatibility.opset"),
        (("compatibility", "minimum_runtime", "onnx"), 1.2, "compatibility.minimum_runtime.onnx"),
        (("compatibility", "minimum_runtime", "tensorrt"), "1", "compatibility.minimum_runtime"),
        (("compatibility", "ops", "tensorrt"), [], "compatibility.ops.tensorrt"),
        (("compatibility", "ops", "tflite", 0), "", "compatibility.ops.tflite[0]"),
        (("compatibility", "max_latency_ms"), 0, "compatibility.max_latency_ms"),
        (("compatibility", "max_latency_ms"), "12", "compatibility.max_latency_ms"),
        (("compatibility", "max_latency_ms"), True, "compatibility.max_latency_ms"),
        (("compatibility", "max_latency_ms"), 10**400, "compatibility.max_latency_ms"),
        (("preprocessing",), [], "preprocessing"),
    ],
)
def test_a_broken_value_is_refused_by_the_name_of_its_key(
    path: tuple[str | int, ...], value: object, key: str
) -> None:
    with pytest.raises(ContractError) as caught:
        Manifest.from_json(changed(*path, value=value))
    assert caught.value.key == key
    assert key in str(caught.value)


@pytest.mark.parametrize("key", sorted(json.loads(manifest().to_json())))
def test_no_key_may_be_missing(key: str) -> None:
    with pytest.raises(ContractError) as caught:
        Manifest.from_json(changed(key, drop=True))
    assert caught.value.key == key


@pytest.mark.parametrize(
    "file",
    [
        *(
            "/etc/passwd",
            "../model.onnx",
            "a/../../b",
            "C:\\model",
            "c:model",
            "a\\b",
            "",
            ".",
            "./a",
            "a//b",
        ),
        *(".hidden", "a/", "a\nb", "x" * 300),
    ],
)
def test_an_artifact_never_leaves_the_bundle(file: str) -> None:
    with pytest.raises(ContractError) as caught:
        Manifest.from_json(changed("artifacts", 0, "file", value=file))
    assert caught.value.key == "artifacts[0].file"


@pytest.mark.parametrize("document", ["", "{", "null", "[]", '"x"', b"\xff{}", "{'a': 1}", "1" * 5000])
def test_what_is_no_json_object_is_refused(document: str | bytes) -> None:
    with pytest.raises(ContractError):
        Manifest.from_json(document)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    document = manifest().to_json().replace("0.25", number)
    assert number in document
    with pytest.raises(ContractError):
        Manifest.from_json(document)


def test_a_duplicate_key_is_refused() -> None:
    with pytest.raises(ContractError, match="twice") as caught:
        Manifest.from_json(manifest().to_json().replace('"schema": 1', '"schema": 1, "schema": 1'))
    assert caught.value.key == "schema"


def test_size_and_depth_are_bounded_before_parsing() -> None:
    with pytest.raises(ContractError, match="bytes"):
        Manifest.from_json(" " * (strict_json.MAX_BYTES + 1))
    with pytest.raises(ContractError, match="nesting"):
        Manifest.from_json("[" * 500_000)
    nested: object = 1
    for _ in range(strict_json.MAX_DEPTH):
        nested = [nested]
    with pytest.raises(ContractError, match="nesting"):
        Manifest.from_json(changed("provenance", value={"deep": nested}))


def test_brackets_inside_text_do_not_count_as_depth() -> None:
    tricky = '[[[[[[[[[[[[[[[[ "quoted \\" [[[[[[[[[[['
    document = changed("provenance", value={"note": tricky})
    assert Manifest.from_json(document).provenance["note"] == tricky


def test_an_unterminated_string_of_escapes_is_refused_quickly() -> None:
    with pytest.raises(ContractError):
        Manifest.from_json('"' + '\\"' * 1_000_000)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1: 2}, {"a": object()}, 10**400])
def test_free_parts_hold_plain_json_only(value: object) -> None:
    with pytest.raises(ContractError) as caught:
        replace(manifest(), provenance={"key": value})
    assert caught.value.key.startswith("provenance")


def test_an_artifact_is_found_by_its_format() -> None:
    found = manifest().artifact("coreml")
    assert found is not None
    assert found.file == "model.mlpackage"
    assert manifest().artifact("onnx") is None


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=3))
def test_every_free_part_survives_or_is_refused_when_it_is_built(part: dict[str, Any]) -> None:
    try:
        built = replace(manifest(), provenance=part)
    except ContractError:
        return
    assert Manifest.from_json(built.to_json()) == built


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_no_document_raises_anything_but_a_contract_error(document: str | bytes) -> None:
    with pytest.raises(ContractError):
        Manifest.from_json(document)


@pytest.mark.parametrize("module", [contract, strict_json])
def test_the_wire_types_run_on_python_3_10_with_the_standard_library_alone(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text("utf-8"), feature_version=(3, 10))
    imported = {
        (node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    } | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {
        "__future__",
        "collections",
        "dataclasses",
        "hashlib",
        "json",
        "math",
        "re",
        "typing",
        "edgekit_runtime",
    }
