"""What killed processes leave is cleared away by the next one; what a living one writes is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.staging import clear_abandoned, put_in_place, staged

pytestmark = pytest.mark.skipif(os.name == "nt", reason="directories cannot be locked on Windows")

# Writes a file, says so, and waits to be killed: in the middle of the work, or between the two renames.
WRITER = """
import sys, time
from pathlib import Path
from edgekit import staging

def wait(*_):
    print("there", flush=True)
    time.sleep(120)

target, place = Path(sys.argv[1]), sys.argv[2]
with staging.staged(target) as folder:
    (folder / "model.onnx").write_bytes(b"new")
    if place == "between the renames":
        Path.rename, rename = lambda self, to: wait() if to == target else rename(self, to), Path.rename
        staging.put_in_place(folder, target)
    wait()
"""


def writer(target: Path, place: str = "at work") -> subprocess.Popen[str]:
    """A process that holds a staged directory beside `target` by the time this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target), place], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replace(target: Path, content: bytes = b"mine") -> None:
    with staged(target) as folder:
        (folder / "model.onnx").write_bytes(content)
        put_in_place(folder, target)


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    target = tmp_path / "größe [1]"
    kill(writer(target))
    [left] = names(tmp_path)
    assert left.startswith(".größe [1].")
    assert left.endswith(".partial")
    replace(target)
    assert names(tmp_path) == ["größe [1]"]
    assert (target / "model.onnx").read_bytes() == b"mine"


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    target = tmp_path / "out"
    process = writer(target)
    try:
        [held] = names(tmp_path)
        replace(target)
        assert names(tmp_path) == [held, "out"]
        assert (tmp_path / held / "model.onnx").read_bytes() == b"new"
    finally:
        kill(process)
    clear_abandoned(target)
    assert names(tmp_path) == ["out"]


def test_a_process_killed_between_the_renames_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "out"
    replace(target, b"earlier")
    kill(writer(target, "between the renames"))
    assert [Path(name).suffix for name in names(tmp_path)] == [".old", ".partial"]
    clear_abandoned(target)
    assert names(tmp_path) == ["out"]
    assert (target / "model.onnx").read_bytes() == b"earlier"


def test_an_earlier_version_that_was_not_removed_in_time_is(tmp_path: Path) -> None:
    target = tmp_path / "out"
    replace(target)
    shutil.copytree(target, tmp_path / ".out.0123abcd.old")
    clear_abandoned(target)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "name",
    [".out.edgekit", ".out.partial", ".out.0123abcd.partial.bak", ".out2.0123abcd.partial", "out.0123abcd.old",
     ".out.0123ABCD.partial", ".out.holiday1.partial"],
)  # fmt: skip
def test_what_is_not_ours_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "dear.jpg").write_bytes(b"dear")
    replace(tmp_path / "out")
    assert (tmp_path / name / "dear.jpg").read_bytes() == b"dear"


def test_a_link_or_a_file_of_our_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dear.jpg").write_bytes(b"dear")
    (tmp_path / ".out.0123abcd.partial").symlink_to(tmp_path / "photos")
    (tmp_path / ".out.0123abcd.old").write_bytes(b"a file")
    replace(tmp_path / "out")
    assert names(tmp_path) == [".out.0123abcd.old", ".out.0123abcd.partial", "out", "photos"]
    assert (tmp_path / "photos" / "dear.jpg").exists()


def test_a_directory_cleared_away_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, made = tmp_path / "out", []
    mkdir = Path.mkdir

    def made_and_taken_at_first(path: Path, *args: int, **more: bool) -> None:
        mkdir(path, *args, **more)
        if path.suffix == ".partial":
            made.append(path)
            if len(made) == 1:
                clear_abandoned(target)

    monkeypatch.setattr(Path, "mkdir", made_and_taken_at_first)
    with staged(target) as folder:
        assert made[1:] == [folder]
        assert folder.is_dir()
    assert names(tmp_path) == []
