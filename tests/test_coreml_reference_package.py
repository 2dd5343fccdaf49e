"""Damaged and hostile Core ML packages: every one is refused with its name, none is trusted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coreml_nets import quantized
from edgekit_converters.coreml import export_coreml
from edgekit_converters.coreml.quiet import import_coremltools
from edgekit_converters.coreml_reference import CoreMLReference
from edgekit_converters.coreml_reference.package import read_package
from edgekit_converters.errors import LoweringError

pytest.importorskip("coremltools")

MODEL = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("sound") / "net.mlpackage"
    export_coreml(quantized(nn.Sequential(nn.Linear(6, 12), nn.ReLU()), (torch.ones(1, 6),)), path)
    return path


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "net.mlpackage"))


def edit(package: Path, change: Callable[[Any], None]) -> None:
    """Changes the specification in place."""
    spec = import_coremltools().proto.Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    change(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())


def block_of(spec: Any) -> Any:
    function = spec.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def first(spec: Any, op: str) -> Any:
    return next(o for o in block_of(spec).operations if o.type == op)


def in_file(spec: Any) -> Any:
    return first(spec, "constexpr_affine_dequantize").attributes["quantized_data"].blobFileValue


def nest(spec: Any) -> None:
    block = block_of(spec)
    for _ in range(12):
        block = block.operations.add(type="cond").blocks.add()


def respelt(change: Callable[[Any], None]) -> Callable[[Path], None]:
    return lambda package: edit(package, change)


def rename(op: str, name: str) -> Callable[[Path], None]:
    return respelt(lambda spec: setattr(first(spec, op), "type", name))


def shift(spec: Any, offset: int) -> None:
    in_file(spec).offset = offset


def cut(file: Path, count: int) -> Callable[[Path], None]:
    return lambda package: (package / file).write_bytes((package / file).read_bytes()[:-count]) and None


def rewrite(file: str | Path, text: str) -> Callable[[Path], None]:
    return lambda package: (package / file).write_text(text) and None


def zeros(package: Path) -> None:
    (package / WEIGHTS).write_bytes(bytes((package / WEIGHTS).stat().st_size))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda p: (p / "Manifest.json").unlink(), "Manifest.json cannot be read"),
    "manifest is not JSON": (rewrite("Manifest.json", "{"), "not a package manifest"),
    "manifest is a list": (rewrite("Manifest.json", "[]"), "not a package manifest"),
    "no model": (lambda p: (p / MODEL).unlink(), "model cannot be read"),
    "model is cut": (cut(MODEL, 40), "not a Core ML specification"),
    "model is empty": (rewrite(MODEL, ""), "expected an mlProgram"),
    "model is text": (rewrite(MODEL, "hello ä"), "the package"),
    "no weights": (lambda p: (p / WEIGHTS).unlink(), "does not exist"),
    "weights are cut": (cut(WEIGHTS, 64), "the package"),
    "weights are zeros": (zeros, "no weight starts"),
    "offset past the end": (respelt(lambda s: shift(s, 2**63)), "does not exist"),
    "offset inside a blob": (respelt(lambda s: shift(s, in_file(s).offset + 8)), "no weight starts"),
    "unknown op": (rename("linear", "frobnicate"), "MIL frobnicate"),
    "unknown constant": (rename("constexpr_affine_dequantize", "constexpr_x"), "MIL constexpr_x"),
    "no main": (respelt(lambda s: s.mlProgram.functions.pop("main")), "no function `main`"),
    "no block": (respelt(lambda s: setattr(s.mlProgram.functions["main"], "opset", "X9")), "X9"),
    "too deep": (respelt(nest), "deep"),
    "an output less": (respelt(lambda s: s.description.output.pop()), "differ in outputs"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_package_is_refused(damage: str, package: Path) -> None:
    break_it, message = DAMAGES[damage]
    break_it(package)
    with pytest.raises(LoweringError) as caught:
        CoreMLReference(package)
    assert message in str(caught.value)


def test_a_manifest_cannot_point_out_of_the_package(package: Path, tmp_path: Path) -> None:
    shutil.copy(package / MODEL, tmp_path / "outside.mlmodel")
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../outside.mlmodel"
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(LoweringError, match="outside"):
        CoreMLReference(package)


def test_a_missing_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"nicht da\.mlpackage"):
        CoreMLReference(tmp_path / "nicht da.mlpackage")


def test_an_argument_of_the_wrong_shape_is_refused_when_it_is_used(package: Path) -> None:
    def swap(spec: Any) -> None:
        linear = first(spec, "linear")
        linear.inputs["weight"].arguments[0].name = linear.inputs["bias"].arguments[0].name

    edit(package, swap)
    with pytest.raises(LoweringError, match="MIL linear"):
        CoreMLReference(package).predict({"x": np.ones((1, 6))})


def test_a_variable_that_nobody_makes_is_refused(package: Path) -> None:
    edit(package, lambda s: setattr(first(s, "linear").inputs["x"].arguments[0], "name", "ghost"))
    with pytest.raises(LoweringError, match="ghost"):
        CoreMLReference(package).predict({"x": np.ones((1, 6))})


def test_weights_read_as_apples_own_reader_reads_them(sound: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageReader

    package = read_package(sound)
    offset = in_file(package.spec).offset
    own = package.blob(offset, np.dtype(np.int8), 72)
    assert np.array_equal(own, np.array(_BlobStorageReader(str(sound / WEIGHTS)).read_int8_data(offset)))
    assert len(np.unique(own)) > 20
