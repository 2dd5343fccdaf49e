"""The bundle: complete or not there, the same bytes for the same content, and refused when a byte changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import bundle
from edgekit.bundle import Bundle, Golden, assemble, check_out, digest
from edgekit.errors import UsageError
from edgekit_runtime.contract import Artifact, Grid, Manifest, TensorSpec

REPORT = {"accepted": True, "reasons": [], "größe": 1.5}


def golden(samples: int = 2) -> Golden:
    x = np.linspace(-1, 1, samples * 4, dtype=np.float32).reshape(samples, 1, 4)
    return Golden(inputs=(x,), outputs=(x[..., :2],), step=(0.1,), tolerance_steps=(2,))


def fill(folder: Path) -> None:
    """Write a whole bundle with a file and a directory as its artifacts."""
    (folder / "model.onnx").write_bytes(b"onnx bytes")
    package = folder / "model.mlpackage"
    (package / "Data").mkdir(parents=True)
    (package / "Data" / "weights.bin").write_bytes(b"\x00\x01")
    (package / "Manifest.json").write_bytes(b"{}")

    def artifact(kind: str, file: str) -> Artifact:
        found = digest(folder / file)
        return Artifact(kind, file, found.sha256, found.size_bytes, "float32", (Grid(0.1, 0),), (None,))

    manifest = Manifest(
        name="tiny",
        version="1.0.0",
        inputs=(TensorSpec("x", "float32", (-1, 4)),),
        outputs=(TensorSpec("y", "float32", (-1, 2)),),
        artifacts=(artifact("onnx", "model.onnx"), artifact("coreml", "model.mlpackage")),
    )
    bundle.write_manifest(folder, manifest)
    bundle.write_golden(folder, golden())
    bundle.write_report(folder, REPORT, "<!doctype html>")


def write(out: Path) -> Path:
    with assemble(out) as folder:
        fill(folder)
    return out


def write_then(out: Path, then: Callable[[Path], object]) -> None:
    """Write a bundle and do one thing more before it is put in place."""
    with assemble(out) as folder:
        fill(folder)
        then(folder)


def fail_with(error: BaseException) -> Callable[[Path], None]:
    def fail(_: Path) -> None:
        raise error

    return fail


def contents(path: Path) -> dict[str, bytes]:
    return {
        each.relative_to(path).as_posix(): each.read_bytes()
        for each in sorted(path.rglob("*"))
        if each.is_file()
    }


def test_what_is_written_opens(tmp_path: Path) -> None:
    opened = Bundle.open(write(tmp_path / "größe" / "out"))
    assert opened.manifest.name == "tiny"
    assert opened.report == REPORT
    assert opened.file("onnx").read_bytes() == b"onnx bytes"
    assert opened.file("coreml").is_dir()
    np.testing.assert_array_equal(opened.golden("onnx").inputs[0], golden().inputs[0])
    assert opened.golden("onnx").tolerance_steps == (2.0,)
    assert [path.name for path in (tmp_path / "größe").iterdir()] == ["out"]


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "first"), write(tmp_path / "second")
    os.utime(first / "model.onnx", (1, 1))
    assert contents(first) == contents(second)


def test_a_format_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tflite artifact"):
        Bundle.open(write(tmp_path / "out")).file("tflite")


@pytest.mark.parametrize(
    "name",
    [
        *("model.onnx", "model.mlpackage/Data/weights.bin", "model.mlpackage/Manifest.json"),
        *("manifest.json", "report.json"),
    ],
)
@pytest.mark.parametrize("damage", ["change", "remove", "truncate"])
def test_a_damaged_bundle_does_not_open(tmp_path: Path, name: str, damage: str) -> None:
    path = write(tmp_path / "out") / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(b"\xff" + content[1:] if damage == "change" else content[:-2])
    with pytest.raises(UsageError) as caught:
        Bundle.open(tmp_path / "out")
    assert name.split("/", maxsplit=1)[0] in caught.value.what


def test_a_file_more_in_a_package_is_noticed(tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    (out / "model.mlpackage" / "extra").write_bytes(b"")
    with pytest.raises(UsageError, match=r"model\.mlpackage"):
        Bundle.open(out)


def test_an_artifact_that_is_a_link_out_of_the_bundle_is_refused(tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    (out / "model.onnx").rename(tmp_path / "elsewhere")
    (out / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="out of the bundle"):
        Bundle.open(out)


def test_a_broken_contract_names_the_key(tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    path = out / "manifest.json"
    path.write_text(path.read_text().replace('"task"', '"tusk"'))
    with pytest.raises(UsageError, match=r"manifest\.json: tusk"):
        Bundle.open(out)


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"[" * 100_000])
def test_a_report_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    out = write(tmp_path / "out")
    (out / "report.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"report\.json"):
        Bundle.open(out)


def test_what_is_no_directory_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(UsageError, match=r"manifest\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), UsageError("a", expected="b", way_out="c")]
)
def test_an_error_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        write_then(tmp_path / "out", fail_with(error))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_clearly_and_leaves_nothing_behind(tmp_path: Path) -> None:
    earlier = contents(write(tmp_path / "out"))

    def fill_the_disk(folder: Path) -> None:
        (folder / "model.tflite").symlink_to("/dev/full")
        (folder / "model.tflite").write_bytes(b"bytes that find no room")

    with pytest.raises(UsageError, match="No space left") as caught:
        write_then(tmp_path / "out", fill_the_disk)
    assert f"{tmp_path / 'out'} is as it was" in caught.value.what
    assert "Free some room" in caught.value.way_out
    assert contents(tmp_path / "out") == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_recognised_below_what_a_writer_makes_of_it(tmp_path: Path) -> None:
    def save(_: Path) -> None:
        try:
            Path("/dev/full").write_bytes(b"x")
        except OSError as error:
            raise RuntimeError("serialization failed") from error

    with pytest.raises(UsageError, match="No space left"):
        write_then(tmp_path / "out", save)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_bundle_is_replaced(tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    (out / "report.html").write_text("old")
    write(out)
    assert (out / "report.html").read_text() == "<!doctype html>"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert Bundle.open(write(tmp_path / "out"))


def test_a_directory_with_foreign_files_is_refused_and_kept(tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(UsageError, match=r"holiday\.jpg"):
        write(foreign)
    assert contents(foreign) == {"holiday.jpg": b"dear"}


def test_a_note_beside_an_earlier_bundle_is_never_lost(tmp_path: Path) -> None:
    out = write(tmp_path / "out")
    (out / "notes.txt").write_text("keep")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        check_out(out)


def test_a_file_put_into_the_directory_meanwhile_is_never_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def somebody_else(_: Path) -> None:
        out.mkdir()
        (out / "late.txt").write_text("keep")

    with pytest.raises(UsageError, match=r"late\.txt"):
        write_then(out, somebody_else)
    assert contents(out) == {"late.txt": b"keep"}


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)
def test_a_place_that_may_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    code = f"""
import os
from pathlib import Path
from edgekit.bundle import check_out
from edgekit.errors import UsageError
os.setuid(65534)
for out in ("/etc/new", "/etc/deep/below", {str(tmp_path / "out")!r}):
    try:
        check_out(Path(out))
    except UsageError as error:
        print(error.what)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "/etc/new: no permission to write to /etc",
        "/etc/deep/below: no permission to write to /etc",
        f"{tmp_path / 'out'}: Permission denied",
    ]


def test_a_file_is_no_place_for_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        write(tmp_path / "out")
    with pytest.raises(UsageError, match=r"below: .*out is a file"):
        write(tmp_path / "out" / "below")


def test_the_hash_of_a_directory_follows_names_and_contents(tmp_path: Path) -> None:
    def package(name: str, files: dict[str, bytes]) -> Path:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return tmp_path / name

    base = digest(package("base", {"a": b"1", "b/c": b"2"}))
    assert base.size_bytes == 2
    assert digest(package("same", {"b/c": b"2", "a": b"1"})) == base
    (tmp_path / "same" / "empty").mkdir()
    assert digest(tmp_path / "same") == base
    others = [{"a": b"2", "b/c": b"1"}, {"a": b"1", "b/d": b"2"}, {"a": b"1", "bc": b"2"}, {"a": b"12"}]
    hashes = {digest(package(f"other{index}", files)).sha256 for index, files in enumerate(others)}
    assert len(hashes | {base.sha256}) == 5


def test_a_link_inside_a_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "link").symlink_to("/etc")
    with pytest.raises(UsageError, match="link"):
        digest(tmp_path / "package")


def test_golden_vectors_have_the_same_bytes_each_time(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bundle.write_golden(tmp_path / "a", golden())
    transposed = Golden(
        inputs=(np.asfortranarray(golden().inputs[0]),),
        outputs=golden().outputs,
        step=(0.1,),
        tolerance_steps=(2.0,),
    )
    bundle.write_golden(tmp_path / "b", transposed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_golden_vectors_with_a_pickle_inside_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    objects: Any = np.array([{"a": 1}], dtype=object)
    np.savez(path, input_0=objects, output_0=objects, step=[1.0], tolerance_steps=[1.0])
    with pytest.raises(UsageError, match=r"input_0\.npy holds object"):
        bundle.read_golden(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage"])
def test_golden_vectors_that_are_no_archive_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "golden.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"golden\.npz"):
        bundle.read_golden(path)


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": ()},
        {"outputs": (np.full((2, 1), np.nan),)},
        {"outputs": (np.ones((3, 1)),)},
        {"outputs": (np.ones(()),)},
        {"outputs": (np.ones((2, 1)),) * 2},
        {"outputs": (np.array([["a"], ["b"]]),)},
        {"step": (0.0,)},
        {"tolerance_steps": (-1.0,)},
        {"tolerance_steps": (float("nan"),)},
    ],
)
def test_golden_vectors_that_test_nothing_cannot_be_built(change: dict[str, Any]) -> None:
    parts = {name: getattr(golden(), name) for name in ("inputs", "outputs", "step", "tolerance_steps")}
    with pytest.raises(ValueError, match="golden vectors"):
        Golden(**{**parts, **change})


def test_a_report_with_nan_is_refused_before_anything_is_in_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_then(tmp_path / "out", lambda folder: bundle.write_report(folder, {"value": float("nan")}, ""))
    assert list(tmp_path.iterdir()) == []
