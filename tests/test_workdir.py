"""Stages on disk: found again by what went into them, made again when they were not finished."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgekit.workdir as module
from edgekit.errors import UsageError
from edgekit.workdir import NO_ROOM, WorkDir, stage_key


class Maker:
    """Writes a file and counts its calls."""

    def __init__(self, text: str = "made") -> None:
        self.calls, self.text = 0, text

    def __call__(self, folder: Path) -> dict[str, object]:
        self.calls += 1
        assert not list(folder.iterdir())
        (folder / "file").write_text(self.text)
        return {"n": self.calls, "ü": [1.5, None]}


def both(folder: Path, facts: dict[str, object]) -> tuple[Path, dict[str, object]]:
    return folder, facts


def test_a_finished_stage_is_found_with_its_facts_and_files(tmp_path: Path) -> None:
    make = Maker()
    first = WorkDir(tmp_path / "out", resume=False).stage("lower", "k" * 64, make, both)
    again = WorkDir(tmp_path / "out", resume=True).stage("lower", "k" * 64, make, both)
    assert first == again
    assert make.calls == 1
    assert again[1] == {"n": 1, "ü": [1.5, None]}
    assert (again[0] / "file").read_text() == "made"


def missing_fact(folder: Path, facts: dict[str, object]) -> object:
    return facts["kept"]


def missing_file(folder: Path, facts: dict[str, object]) -> object:
    return (folder / "kept").read_text() and facts["kept"]


def another_type(folder: Path, facts: dict[str, object]) -> object:
    return list(facts["n"])  # type: ignore[call-overload]


@pytest.mark.parametrize("read", [missing_fact, missing_file, another_type])
def test_what_another_state_of_the_sources_left_is_made_anew(
    tmp_path: Path, read: Callable[[Path, dict[str, object]], object]
) -> None:
    def newer(folder: Path) -> dict[str, object]:
        (folder / "kept").write_text("now")
        return {"kept": "now", "n": "now"}

    WorkDir(tmp_path / "out", resume=False).stage("quantize", "k" * 64, Maker(), both)
    found = WorkDir(tmp_path / "out", resume=True).stage("quantize", "k" * 64, newer, read)
    assert found in ("now", list("now"))
    assert len(list((tmp_path / ".out.edgekit").iterdir())) == 1


def test_what_its_own_stage_cannot_read_is_an_error(tmp_path: Path) -> None:
    make = Maker()
    with pytest.raises(KeyError, match="kept"):
        WorkDir(tmp_path / "out", resume=False).stage("quantize", "k" * 64, make, missing_fact)
    assert make.calls == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '"n"', "\x00"])
def test_a_torn_marker_is_no_finished_stage(tmp_path: Path, text: str) -> None:
    make = Maker()
    folder, _ = WorkDir(tmp_path / "out", resume=False).stage("lower", "k" * 64, make, both)
    (folder / "done.json").write_text(text)

    def n(_: Path, facts: dict[str, object]) -> object:
        return facts["n"]

    assert WorkDir(tmp_path / "out", resume=True).stage("lower", "k" * 64, make, n) == 2


def test_what_other_packages_made_is_made_anew_and_kept_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    with WorkDir(tmp_path / "out", resume=False) as work:
        work.stage("distil", "k" * 64, make, both)
        (work.scratch("train", "t" * 64) / "epoch").write_text("3")
    real = module.versions()
    with monkeypatch.context() as patch, WorkDir(tmp_path / "out", resume=True) as work:
        patch.setattr(module, "versions", lambda: {**real, "torch": "2.99"})
        work.stage("distil", "k" * 64, make, both)
        assert make.calls == 2
        assert list(work.scratch("train", "t" * 64).iterdir()) == []
    with WorkDir(tmp_path / "out", resume=True) as work:
        work.stage("distil", "k" * 64, make, both)
        assert (work.scratch("train", "t" * 64) / "epoch").read_text() == "3"
    assert make.calls == 2


def test_without_resume_nothing_of_an_earlier_run_is_used(tmp_path: Path) -> None:
    make = Maker()
    WorkDir(tmp_path / "out", resume=False).stage("lower", "k" * 64, make, both)
    WorkDir(tmp_path / "out", resume=False).stage("lower", "k" * 64, make, both)
    assert make.calls == 2


def test_another_key_or_name_is_another_stage(tmp_path: Path) -> None:
    work, make = WorkDir(tmp_path / "out", resume=False), Maker()
    folders = {
        work.stage(name, key * 64, make, both)[0] for name, key in (("a", "1"), ("a", "2"), ("b", "1"))
    }
    assert len(folders) == make.calls == 3


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_stage_is_made_anew_from_an_empty_folder(
    tmp_path: Path, stop: type[BaseException]
) -> None:
    def interrupted(folder: Path) -> dict[str, object]:
        (folder / "half").write_text("ha")
        raise stop

    work = WorkDir(tmp_path / "out", resume=False)
    with pytest.raises(stop):
        work.stage("lower", "k" * 64, interrupted, both)
    assert list(tmp_path.iterdir()) == []
    make = Maker()
    WorkDir(tmp_path / "out", resume=True).stage("lower", "k" * 64, make, both)
    assert make.calls == 1


def test_a_stage_that_a_power_cut_ended_is_made_anew(tmp_path: Path) -> None:
    work, make = WorkDir(tmp_path / "out", resume=False), Maker()
    folder, _ = work.stage("lower", "k" * 64, make, both)
    (folder / "done.json").rename(folder / "done.json.part")
    (folder / "half").write_text("ha")
    work.release()
    WorkDir(tmp_path / "out", resume=True).stage("lower", "k" * 64, make, both)
    assert make.calls == 2
    assert sorted(p.name for p in folder.iterdir()) == ["done.json", "file"]


def test_a_failed_stage_leaves_the_finished_ones(tmp_path: Path) -> None:
    work, make = WorkDir(tmp_path / "out", resume=False), Maker()
    kept, _ = work.stage("quantize", "q" * 64, make, both)

    def fails(folder: Path) -> dict[str, object]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        work.stage("lower", "k" * 64, fails, both)
    assert list(work.path.iterdir()) == [kept]


@pytest.mark.parametrize("code", NO_ROOM)
def test_no_room_is_an_error_of_usage_that_keeps_what_is_finished(tmp_path: Path, code: int) -> None:
    def full(folder: Path) -> dict[str, object]:
        raise OSError(code, os.strerror(code), str(folder / "model.onnx"))

    work = WorkDir(tmp_path / "out", resume=False)
    kept, _ = work.stage("quantize", "q" * 64, Maker(), both)
    with pytest.raises(UsageError, match=r"model\.onnx") as caught:
        work.stage("lower", "k" * 64, full, both)
    assert os.strerror(code) in caught.value.what
    assert "--resume" in caught.value.way_out
    assert list(work.path.iterdir()) == [kept]


def test_another_error_of_the_system_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def broken(folder: Path) -> dict[str, object]:
        raise OSError(errno.EIO, "I/O error")

    with pytest.raises(OSError, match="I/O error"):
        WorkDir(tmp_path / "out", resume=False).stage("lower", "k" * 64, broken, both)


def test_a_place_that_cannot_be_written_is_an_error_of_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Not a directory"):
        WorkDir(tmp_path / "file" / "out", resume=False).stage("lower", "k" * 64, Maker(), both)


def test_the_current_directory_as_output_keeps_its_work_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    work = WorkDir(Path(), resume=False)
    work.stage("lower", "k" * 64, Maker(), both)
    assert list(here.iterdir()) == []
    assert work.path == tmp_path / ".here.edgekit"


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    work = WorkDir(tmp_path / "out", resume=False)
    work.stage("lower", "k" * 64, Maker(), both)
    work.remove()
    work.remove()
    assert list(tmp_path.iterdir()) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_keys_differ_when_what_went_in_differs(a: object, b: object) -> None:
    assert stage_key(a, b) == stage_key(a, b)
    assert len(stage_key(a)) == 64
    assert (stage_key(a) == stage_key(b)) == (repr_json(a) == repr_json(b))
    assert stage_key(a, b) != stage_key([a, b])


def repr_json(value: object) -> str:
    import json

    return json.dumps(value, sort_keys=True)


def test_the_order_of_a_tables_keys_does_not_matter() -> None:
    assert stage_key({"a": 1, "b": 2}) == stage_key({"b": 2, "a": 1})


def test_a_folder_that_another_run_works_in_is_left_alone(tmp_path: Path) -> None:
    make = Maker()
    with WorkDir(tmp_path / "out", resume=False) as work:
        folder = work.stage("lower", "k" * 64, make, both)[0]
        for resume in (False, True):
            with pytest.raises(UsageError, match="another `edgekit compress` is at work"):
                WorkDir(tmp_path / "out", resume=resume)
        assert folder.is_dir()

    WorkDir(tmp_path / "out", resume=True).stage("lower", "k" * 64, make, both)
    assert make.calls == 1


def test_a_run_that_failed_lets_the_next_one_in(tmp_path: Path) -> None:
    def run(*, resume: bool) -> Path:
        with WorkDir(tmp_path / "out", resume=resume) as work:
            work.stage("data", "d" * 64, Maker(), both)
            raise ValueError(work.path)

    with pytest.raises(ValueError, match="edgekit"):
        run(resume=False)
    with pytest.raises(ValueError, match="edgekit"):
        run(resume=True)


def test_a_scratch_folder_outlives_an_interrupt_and_goes_with_everything_else(tmp_path: Path) -> None:
    def training(folder: Path) -> dict[str, object]:
        (work.scratch("train", "t" * 64) / "epoch").write_text("3")
        raise KeyboardInterrupt

    work = WorkDir(tmp_path / "out", resume=False)
    with pytest.raises(KeyboardInterrupt):
        work.stage("train", "t" * 64, training, both)
    work.release()
    again = WorkDir(tmp_path / "out", resume=True)
    assert (again.scratch("train", "t" * 64) / "epoch").read_text() == "3"
    assert list(again.scratch("train", "u" * 64).iterdir()) == []
    make = Maker()
    again.stage("train", "t" * 64, make, both)
    assert make.calls == 1, "a scratch folder is no finished stage"
    again.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_is_gone_without_resume(tmp_path: Path) -> None:
    with WorkDir(tmp_path / "out", resume=False) as work:
        (work.scratch("train", "t" * 64) / "epoch").write_text("3")
    work = WorkDir(tmp_path / "out", resume=False)
    assert list(work.scratch("train", "t" * 64).iterdir()) == []


def test_a_scratch_folder_is_held_against_other_runs(tmp_path: Path) -> None:
    with WorkDir(tmp_path / "out", resume=False) as work:
        work.scratch("train", "t" * 64)
        with pytest.raises(UsageError, match="another `edgekit compress` is at work"):
            WorkDir(tmp_path / "out", resume=True)


def test_a_scratch_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / ".out.edgekit").write_text("in the way")
    with pytest.raises(UsageError, match=r"train-\w+\.scratch") as caught:
        WorkDir(tmp_path / "out", resume=True).scratch("train", "t" * 64)
    assert "-o" in caught.value.way_out
