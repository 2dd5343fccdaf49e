"""Every wrong input, through the command line: exit code, what the message names, what is left behind."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.bundle import Bundle
from support.tiny_runs import call, compress, folder, images, labels, network, save_data

MODEL = "model.pt2"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own current directory with a good model in it."""
    shutil.copy(folder() / MODEL, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class RunsCode:
    """Unpickling it makes a directory."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("code-ran",)


def not_a_model(here: Path) -> tuple[str, ...]:
    Path("notes.pt").write_text("no model, but the name of one")
    return ("notes.pt",)


def no_such_file(here: Path) -> tuple[str, ...]:
    return ("größe.pt2",)


def a_pickle(here: Path) -> tuple[str, ...]:
    torch.save(RunsCode(), "pickled.pt")
    return ("pickled.pt",)


def truncated(here: Path) -> tuple[str, ...]:
    whole = Path(MODEL).read_bytes()
    Path("half.pt2").write_bytes(whole[: len(whole) // 2])
    return ("half.pt2",)


def state_dict(here: Path) -> tuple[str, ...]:
    torch.save(network().state_dict(), "weights.pt")
    return ("weights.pt",)


def raising_factory(here: Path) -> tuple[str, ...]:
    Path("raising_factory.py").write_text("def make():\n    raise RuntimeError('no such width')\n")
    return (*state_dict(here), "--factory", "raising_factory:make")


def wrong_input_shape(here: Path) -> tuple[str, ...]:
    return (MODEL, "--input-shape", "1,4,8,8")


def malformed_input_shape(here: Path) -> tuple[str, ...]:
    return (MODEL, "--input-shape", "1,3,8,wide")


def wrong_data_shape(here: Path) -> tuple[str, ...]:
    save_data(Path("wide.npz"), x=np.zeros((8, 3, 9, 9), np.float32))
    return (MODEL, "--data", "wide.npz")


def nan_in_data(here: Path) -> tuple[str, ...]:
    x = images()
    x[7, 1, 2, 3] = np.nan
    save_data(Path("holes.npz"), x=x, y=labels(images()))
    return (MODEL, "--data", "holes.npz")


def label_out_of_range(here: Path) -> tuple[str, ...]:
    x = images()
    save_data(Path("labels.npz"), x=x, y=np.full(len(x), 4))
    return (MODEL, "--data", "labels.npz")


def one_hot_labels(here: Path) -> tuple[str, ...]:
    x = images()
    save_data(Path("hot.npz"), x=x, y=np.eye(4, dtype=np.int64)[labels(x)])
    return (MODEL, "--data", "hot.npz")


def empty_data(here: Path) -> tuple[str, ...]:
    save_data(Path("empty.npz"), x=images(0), y=np.zeros(0, np.int64))
    return (MODEL, "--data", "empty.npz")


def missing_data(here: Path) -> tuple[str, ...]:
    return (MODEL, "--data", "nowhere.npz")


def unknown_recipe_key(here: Path) -> tuple[str, ...]:
    Path("recipe.toml").write_text('[quantize]\nobserver = ["minmax"]\n')
    return (MODEL, "--recipe", "recipe.toml")


def wrong_recipe_value(here: Path) -> tuple[str, ...]:
    Path("recipe.toml").write_text("[budget]\nmax_drop = -1\n")
    return (MODEL, "--recipe", "recipe.toml")


def used_directory(here: Path) -> tuple[str, ...]:
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("years of work")
    return (MODEL, "-o", "thesis")


def out_is_a_file(here: Path) -> tuple[str, ...]:
    Path("taken").write_text("x")
    return (MODEL, "-o", "taken")


def out_below_a_file(here: Path) -> tuple[str, ...]:
    Path("taken").write_text("x")
    return (MODEL, "-o", "taken/out")


def unknown_format(here: Path) -> tuple[str, ...]:
    return (MODEL, "--format", "onnx,bogus")


def unknown_target(here: Path) -> tuple[str, ...]:
    return (MODEL, "--target", "toaster")


def unknown_metric(here: Path) -> tuple[str, ...]:
    return (MODEL, "--metric", "top3")


def metric_without_module(here: Path) -> tuple[str, ...]:
    return (MODEL, "--data", str(folder() / "data.npz"), "--metric", "no_such_module:f")


def metric_without_data(here: Path) -> tuple[str, ...]:
    return (MODEL, "--metric", "top1")


def metric_without_labels(here: Path) -> tuple[str, ...]:
    save_data(Path("bare.npz"), x=images())
    return (MODEL, "--data", "bare.npz", "--metric", "top1")


def negative_seed(here: Path) -> tuple[str, ...]:
    return (MODEL, "--seed", "-1")


def drop_in_letters(here: Path) -> tuple[str, ...]:
    return (MODEL, "--max-drop", "abc")


def seed_with_a_fraction(here: Path) -> tuple[str, ...]:
    return (MODEL, "--seed", "1.5")


def unknown_preprocessing_key(here: Path) -> tuple[str, ...]:
    Path("recipe.toml").write_text("[preprocessing]\nmeen = [1]\n")
    return (MODEL, "--recipe", "recipe.toml")


def drop_of_nan(here: Path) -> tuple[str, ...]:
    return (MODEL, "--max-drop", "nan")


# What is wrong, and what the message must name: the file or option, the value, what was expected.
CASES: tuple[tuple[Callable[[Path], tuple[str, ...]], tuple[str, ...]], ...] = (
    (not_a_model, ("notes.pt", "text", "torch.export.save")),
    (no_such_file, ("größe.pt2", "no such file")),
    (a_pickle, ("pickled.pt", "mkdir", "--trust")),
    (truncated, ("half.pt2", "truncated", "a whole file")),
    (state_dict, ("weights.pt", "state dict", "--factory")),
    (raising_factory, ("--factory raising_factory:make", "RuntimeError: no such width")),
    (wrong_input_shape, ("(1, 4, 8, 8)", "3×8×8", "--input-shape")),
    (malformed_input_shape, ("--input-shape 1,3,8,wide", "1,3,224,224")),
    (wrong_data_shape, ("wide.npz", "(3, 9, 9)", "(3, 8, 8)")),
    (nan_in_data, ("holes.npz", "nan in row 7", "finite")),
    (label_out_of_range, ("labels.npz", "label 4 of row ", "0…3")),
    (one_hot_labels, ("hot.npz", "(4,)", "1 for each input", "one-hot")),
    (empty_data, ("empty.npz", "no samples", "at least one")),
    (missing_data, ("nowhere.npz", "no such file")),
    (unknown_recipe_key, ("recipe.toml", "quantize.observer", 'Did you mean "observers"?')),
    (wrong_recipe_value, ("recipe.toml", "budget.max_drop = -1", "at least 0")),
    (used_directory, ("thesis", "chapter.txt", "-o")),
    (out_is_a_file, ("taken", "not a directory", "-o")),
    (out_below_a_file, ("taken", "-o")),
    (unknown_format, ('--format = ["onnx", "bogus"]', '"onnx"', '"tflite"', '"coreml"')),
    (unknown_target, ("toaster", "raspberry-pi-5")),
    (unknown_metric, ('"top3"', "top1")),
    (metric_without_module, ("no_such_module:f", "module:callable")),
    (metric_without_labels, ("--metric top1", "no labels", "agreement")),
    (metric_without_data, ("--metric top1", "no labels", "agreement")),
    (negative_seed, ("seed = -1", "4294967295")),
    (drop_of_nan, ("--max-drop = NaN", "at least 0")),
    (drop_in_letters, ("--max-drop abc", "a number")),
    (seed_with_a_fraction, ("--seed 1.5", "a whole number")),
    (unknown_preprocessing_key, ("meen", "mean", "[preprocessing]")),
)


def tree(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("wrong", "named"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_wrong_input_ends_with_two_says_what_and_why_and_leaves_nothing(
    here: Path, wrong: Callable[[Path], tuple[str, ...]], named: tuple[str, ...]
) -> None:
    arguments = wrong(here)
    before = tree(here)
    extra = () if "-o" in arguments else ("-o", "out")
    result = call("compress", *arguments, *extra)
    assert result.exit_code == 2, result.stderr
    for part in (
        "error: ",
        "expected: ",
        "way out: " if "toaster" not in arguments else "edgekit devices",
        *named,
    ):
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    after = {name: data for name, data in tree(here).items() if "__pycache__" not in name}
    assert after == before
    assert not [p for p in here.iterdir() if p.name.startswith((".", "out"))]


def test_a_pickle_runs_no_code_without_trust_and_does_with_it(here: Path) -> None:
    arguments = a_pickle(here)
    assert call("compress", *arguments).exit_code == 2
    assert not Path("code-ran").exists()
    # The same file does what its author chose once it is trusted: the test above can fail.
    assert call("compress", *arguments, "--trust").exit_code == 2
    assert Path("code-ran").exists()


def test_inspect_runs_no_code_either(here: Path) -> None:
    result = call("inspect", *a_pickle(here))
    assert result.exit_code == 2
    assert "--trust" in result.stderr
    assert not Path("code-ran").exists()


@pytest.mark.slow
def test_calibrating_on_the_evaluation_set_is_warned_of_in_the_report(here: Path) -> None:
    x = images()
    save_data(Path("same.npz"), calib_x=x, eval_x=x, eval_y=labels(x))
    result = compress(MODEL, "--data", "same.npz", "-o", "out")
    assert result.exit_code == 0, result.stderr
    notes = Bundle.open("out").report["notes"]
    assert any("calibration" in note and "evaluation" in note for note in notes), notes
    assert any(note in Path("out/report.html").read_text() for note in notes)


@pytest.fixture(params=[48, 100, 112, 120, 140])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of so many kB; the run needs about 160 and fails in another stage on each."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(mounted)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.decode().strip()}")
    yield mounted
    subprocess.run(["umount", "-l", str(mounted)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs is Linux's")
def test_a_full_disk_is_said_and_no_half_written_bundle_is_left(small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "out"
    result = compress(folder() / MODEL, "--data", folder() / "data.npz", "-o", out)
    assert result.exit_code == 2, result.stderr
    assert "No space left on device" in result.stderr
    assert "expected: " in result.stderr
    assert "-o" in result.stderr
    assert not out.exists()
    # What is kept is finished: with room, `--resume` goes on from it.
    assert all((stage / "done.json").exists() for stage in small_disk.glob(".out.edgekit/*"))
    assert not list(small_disk.glob(".out.*.partial"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = compress(folder() / MODEL, "--data", folder() / "data.npz", "-o", out, "--resume")
    assert again.exit_code == 0, again.stderr
    assert sorted(p.name for p in small_disk.iterdir()) == ["out"]
    Bundle.open(out)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
@pytest.mark.parametrize("limit_bytes", [3_000, 12_000, 19_000], ids=["result", "archive", "golden"])
def test_a_limit_on_the_size_of_files_is_a_full_disk_too(tmp_path: Path, limit_bytes: int) -> None:
    import resource

    done = subprocess.run(
        [
            sys.executable, "-m", "edgekit.cli", "compress", str(folder() / MODEL),
            "--data", str(folder() / "data.npz"), "-o", str(tmp_path / "out"),
            "--preset", "fast", "--format", "onnx", "--allow-slower",
        ],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.*.partial"))
