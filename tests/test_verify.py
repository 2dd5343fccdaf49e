"""`verify` and `inspect` on bundles: whole, tampered with, foreign, and with files that crash a runtime."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle, Golden, digest, write_golden
from edgekit.verify import saved_model, verify_bundle
from support.tiny_runs import bundle, call

pytestmark = pytest.mark.slow

FORMATS = {"onnx": "model.onnx", "tflite": "model.tflite", "coreml": "model.mlpackage"}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return shutil.copytree(bundle(), tmp_path / "bundle")


def the_file(path: Path) -> Path:
    """The artifact, or the largest file of a package."""
    return (
        path
        if path.is_file()
        else max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    )


def admit(path: Path, name: str) -> None:
    """Let the manifest vouch for whatever an artifact is now."""
    manifest = json.loads((path / "manifest.json").read_text())
    (row,) = [a for a in manifest["artifacts"] if a["format"] == name]
    content = digest(path / row["file"])
    row["sha256"], row["size_bytes"] = content.sha256, content.size_bytes
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_good_bundle_holds_and_every_file_has_its_row() -> None:
    result = call("verify", bundle(), "--json")
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["holds"] is True
    assert answer["failures"] == {}
    assert set(answer["proofs"]) == set(FORMATS)
    report = Bundle.open(bundle()).report
    for name, proof in answer["proofs"].items():
        assert proof["holds"] is True
        assert proof["reference"] == report["artifacts"][name]["proof"]["reference"]
        assert proof["max_steps"] <= report["artifacts"][name]["proof"]["max_steps"] + 1e-9


def test_the_table_is_for_people() -> None:
    result = call("verify", bundle())
    assert result.exit_code == 0, result.stderr
    assert all(word in result.stdout for word in (*FORMATS, "LiteRT", "yes"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_one_flipped_byte_in_any_artifact_is_found_by_its_hash(copied: Path, name: str, command: str) -> None:
    file = the_file(copied / FORMATS[name])
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    result = call(command, copied)
    assert result.exit_code == 2
    for part in (FORMATS[name], "sha256", "as in the manifest", "way out"):
        assert part in result.stderr


def no_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return "manifest.json"


def torn_manifest(path: Path) -> str:
    whole = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(whole[: len(whole) // 2])
    return "manifest.json"


def missing_artifact(path: Path) -> str:
    (path / "model.tflite").unlink()
    return "model.tflite"


def torn_golden(path: Path) -> str:
    whole = (path / "golden.npz").read_bytes()
    (path / "golden.npz").write_bytes(whole[: len(whole) // 2])
    return "golden.npz"


@pytest.mark.parametrize("damage", [no_manifest, torn_manifest, missing_artifact])
def test_what_is_no_whole_bundle_is_refused_by_the_file_at_fault(
    copied: Path, damage: Callable[[Path], str]
) -> None:
    named = damage(copied)
    result = call("verify", copied)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "way out" in result.stderr


def test_damaged_golden_vectors_hold_nothing(copied: Path) -> None:
    torn_golden(copied)
    answer = verify_bundle(copied)
    assert not answer.holds
    assert set(answer.failures) == set(FORMATS)
    assert all("golden.npz" in why for why in answer.failures.values())


def test_a_foreign_directory_and_a_file_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8")
    for path in (tmp_path, tmp_path / "photo.jpg", tmp_path / "nothing"):
        result = call("verify", path)
        assert result.exit_code == 2
        assert str(path) in result.stderr
        assert "expected: " in result.stderr


@pytest.mark.parametrize("name", FORMATS)
def test_garbage_that_the_manifest_vouches_for_fails_in_its_row_and_harms_no_other(
    copied: Path, name: str
) -> None:
    # Enough of a header that the runtime begins to parse: the rest may crash it.
    file = the_file(copied / FORMATS[name])
    file.write_bytes(file.read_bytes()[:64] + bytes(range(256)) * 8)
    admit(copied, name)
    result = call("verify", copied, "--json")
    assert result.exit_code == 3, result.stderr
    answer = json.loads(result.stdout)
    assert answer["holds"] is False
    fails = name in answer["failures"]
    assert fails or not answer["proofs"][name]["holds"]
    assert not fails or len(answer["failures"][name]) > 20
    others = set(FORMATS) - {name}
    assert all(answer["proofs"][other]["holds"] for other in others)
    assert "NO" in call("verify", copied).stdout


def test_a_file_of_other_weights_does_not_hold(copied: Path) -> None:
    """The hash fits, it loads and it runs; only the numbers tell."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(copied / "model.onnx")
    weights = next(
        t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    )
    changed = numpy_helper.to_array(weights).copy()
    changed[0] = -changed[0]
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    onnx.save(model, copied / "model.onnx")
    admit(copied, "onnx")
    answer = verify_bundle(copied)
    assert not answer.holds
    assert not answer.failures
    assert answer.proofs["onnx"].max_steps > answer.proofs["onnx"].max_allowed
    assert answer.proofs["tflite"].holds


def test_golden_vectors_of_another_model_are_a_failure_in_words(copied: Path) -> None:
    one = np.zeros((2, 3), np.float32)
    write_golden(copied, Golden((one, one), (one,), (1.0,), (2.0,)))
    answer = verify_bundle(copied)
    assert not answer.holds
    assert all("2 inputs and 1 outputs" in why for why in answer.failures.values())


def test_inspect_tells_what_a_bundle_is() -> None:
    found = json.loads(call("inspect", bundle(), "--json").stdout)
    assert found["kind"] == "bundle"
    assert found["accepted"] is True
    assert found["outputs"] == ["output: float32 [-1, 4]"]
    assert all(FORMATS[name] in found[name] for name in FORMATS)
    assert "model.tflite" in call("inspect", bundle()).stdout


def test_a_saved_model_carries_the_grids_of_the_manifest() -> None:
    opened = Bundle.open(bundle())
    saved = saved_model(opened, "tflite")
    artifact = opened.manifest.artifact("tflite")
    assert saved.path.name == "model.tflite"
    assert saved.inputs[0].shape == (1, 3, 8, 8)
    assert saved.inputs[0].batch
    assert saved.output_grids[0].scale == artifact.output_grids[0].scale
