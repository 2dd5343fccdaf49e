"""Wrong input to pruning, training and searching, through the command line: exit code, message, what is left."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn
from typer.testing import Result

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.pipeline import Request, run
from support.shrinking import saved
from support.tiny_runs import bundle, call, save_program

MODEL, DATA = "model.pt2", "data.npz"
PRUNED = ("--prune", "0.5", "--epochs", "1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own current directory with a model that can be pruned, and data to train it on."""
    saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def compress(*arguments: object, recipe: str = "") -> Result:
    """In one format, without calibrating for long."""
    Path("recipe.toml").write_text(f"{recipe}\n[train]\n" if "[train]" not in recipe else recipe)
    quick = ("--preset", "fast", "--format", "onnx", "--allow-slower", "--max-drop", "1", "-o", "out")
    return call("compress", MODEL, *arguments, "--recipe", "recipe.toml", *quick)


def said(result: Result, *parts: str, code: int = 2) -> None:
    assert result.exit_code == code, result.stderr
    for part in ("error: ", "expected: ", "way out: ", *parts):
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def left(root: Path) -> list[str]:
    """What a run left behind."""
    return sorted(p.name for p in root.iterdir() if p.name.startswith((".out", "out")))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--max-latency-ms", "fast"), ("--max-latency-ms fast", "a number")),
        (("--max-latency-ms", "-1"), ("--max-latency-ms = -1", "above 0")),
        (("--max-latency-ms", "0"), ("--max-latency-ms = 0", "above 0")),
        (("--max-latency-ms", "nan"), ("--max-latency-ms = NaN", "above 0")),
        (("--max-latency-ms", "inf"), ("--max-latency-ms = Infinity", "above 0")),
        (("--max-size-mb", "2MB"), ("--max-size-mb 2MB", "a number")),
        (("--max-size-mb", "0"), ("--max-size-mb = 0", "above 0")),
        (("--max-drop", "-0.1"), ("--max-drop = -0.1", "at least 0")),
        (("--epochs", "-1"), ("--epochs = -1", "from 0 to")),
        (("--epochs", "1.5"), ("--epochs 1.5", "a whole number")),
        (("--prune", "1.5"), ("--prune = 1.5", "at most 0.95")),
        (("--prune", "-0.5"), ("--prune = -0.5", "at least 0")),
        (("--prune", "nan"), ("--prune = NaN", "at most 0.95")),
        (("--prune", "half"), ("--prune half", "a number")),
        (("--student", "student.py"), ("--student", "module:callable")),
        (("--from-trial", "best"), ("--from-trial best", "a whole number")),
    ],
    ids=" ".join,
)
def test_a_value_of_the_wrong_type_or_size_is_told_before_anything_is_read(
    tmp_path: Path, options: tuple[str, ...], named: tuple[str, ...]
) -> None:
    said(call("compress", tmp_path / "no-model.pt2", *options, "-o", tmp_path / "out"), *named)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('[budget]\nmax_latency_ms = "fast"', ('budget.max_latency_ms = "fast"', "a number above 0")),
        ("[budget]\nmax_size_mb = true", ("budget.max_size_mb = true", "a number above 0")),
        ("[budget]\nmax_latency = 3", ("unknown key", "max_latency_ms")),
        ("[prune]\nratio = [0.5]", ("prune.ratio = [0.5]", "a number")),
        ('[prune]\nby = "flops"', ('prune.by = "flops"', '"latency"')),
        ("[prune]\nrounds = 0", ("prune.rounds = 0", "from 1 to 20")),
        ('[train]\nlearning_rate = "fast"', ('train.learning_rate = "fast"', "a number above 0")),
        ("[train]\nbatch_size = 0", ("train.batch_size = 0", "from 1 to")),
        ("[train]\nema = 1.0", ("train.ema = 1.0", "at most")),
        ("[train]\npatience = 0", ("train.patience = 0", "from 1 to")),
        ('[qat]\nenabled = "sometimes"', ('qat.enabled = "sometimes"', '"auto"')),
        ("[search]\ntrials = 0", ("search.trials = 0", "from 1 to")),
        ('[search]\nstorage = "trials.db"', ('search.storage = "trials.db"', "sqlite:///")),
    ],
    ids=lambda value: value.split("\n")[-1] if isinstance(value, str) else "",
)
def test_a_wrong_value_of_the_recipe_is_told_with_its_file_and_key(
    here: Path, table: str, named: tuple[str, ...]
) -> None:
    said(compress("--data", DATA, recipe=table), "recipe.toml", *named)
    assert left(here) == []


@pytest.mark.parametrize("option", [("--prune", "0.5"), ("--qat",), ("--student", "nets:make")], ids=" ".join)
def test_training_without_data_is_refused(here: Path, option: tuple[str, ...]) -> None:
    said(compress(*option), "there is no --data", option[0], "train_x", "Give them with --data")
    assert left(here) == []


def test_distilling_from_nobody_without_labels_is_refused_and_what_is_finished_is_kept(here: Path) -> None:
    np.savez("bare.npz", x=np.load(DATA)["train_x"])
    result = compress("--data", "bare.npz", *PRUNED, "--no-distill")
    said(result, "neither a teacher nor labels", "train_y")
    assert list(here.glob(".out.edgekit/prune-*/done.json"))


def student(text: str) -> Callable[[Path], str]:
    def write(here: Path) -> str:
        (here / "nets_of_mine.py").write_text(f"import torch\nfrom torch import nn\n{text}\n")
        return "nets_of_mine:make"

    return write


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda here: "no_such_module:make", ("no_such_module:make", "ModuleNotFoundError")),
        (student("other = 1"), ("nets_of_mine:make", "AttributeError")),
        (student("make = 3"), ("it is a int", "a callable without arguments")),
        (student("def make(): return 'net'"), ("gave a str", "Return the network itself")),
        (student("def make(width): return nn.Linear(36, 4)"), ("raised TypeError", "defaults")),
        (student("def make(): return nn.Sequential(nn.Flatten(), nn.Linear(36, 5))"), ("(1, 5)", "(1, 4)")),
    ],
    ids=["no module", "no name", "not callable", "not a network", "arguments", "other outputs"],
)
def test_a_student_that_cannot_be_had_is_told(
    here: Path, make: Callable[[Path], str], named: tuple[str, ...]
) -> None:
    sys.modules.pop("nets_of_mine", None)
    try:
        said(compress("--data", DATA, "--student", make(here), "--epochs", "1"), "student", *named)
    finally:
        sys.modules.pop("nets_of_mine", None)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ('[prune]\nkeep = ["*"]', ('keep = ["*"] in [prune] names every layer', "Name fewer layers")),
        ("[prune]\nmultiple = 64", ("no layer is wide enough to lose 64 channels", "smaller `multiple`")),
    ],
    ids=["all kept", "too narrow"],
)
def test_layers_that_cannot_be_pruned_are_told(here: Path, table: str, named: tuple[str, ...]) -> None:
    said(compress("--data", DATA, *PRUNED, recipe=table), "--prune 0.5", *named)
    assert left(here) == []


def test_a_network_with_nothing_to_prune_is_told_with_what_stands_in_the_way(here: Path) -> None:
    save_program(here / MODEL, nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).eval(), 1, 6, 6)
    result = compress("--data", DATA, *PRUNED)
    said(result, "--prune 0.5", "no channels of this network can be removed", "Leave --prune out")
    assert "what the model gives" in result.stderr
    assert left(here) == []


def test_a_loss_that_is_no_number_keeps_the_checkpoints_and_a_lower_rate_goes_on(here: Path) -> None:
    wild = '[train]\nlearning_rate = 1e30\noptimizer = "sgd"\nbatch_size = 16'
    result = compress("--data", DATA, "--prune", "0.5", "--epochs", "2", recipe=wild)
    said(result, "the loss is", "of epoch 1", "learning rate of", "Lower `learning_rate`", "1e+30")
    (state,) = here.glob(".out.edgekit/train-*.scratch/state.pt")
    assert str(state) in result.stderr.replace("\n", "")
    assert not (here / "out").exists()
    assert list(here.glob(".out.edgekit/prune-*/done.json"))

    tame = wild.replace("1e30", "0.01")
    again = compress("--data", DATA, "--prune", "0.5", "--epochs", "2", "--resume", recipe=tame)
    assert again.exit_code == 0, again.stderr
    assert left(here) == ["out"]
    assert Bundle.open(here / "out").report["accepted"]


def test_training_a_network_that_gives_nan_is_told(here: Path) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 32, 3), nn.Linear(32, 4)

        def forward(self, x):
            return (self.head(self.conv(x).mean((2, 3))) - 1e30).sqrt()

    save_program(here / MODEL, Broken().eval(), 1, 6, 6)
    result = compress("--data", DATA, *PRUNED)
    assert result.exit_code == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "way out: " in result.stderr
    assert not (here / "out").exists()


SMALL_MEMORY = """
import resource, sys
import psutil, torch, onnxruntime
import edgekit.pipeline, edgekit.cli
room = psutil.Process().memory_info().vms + 400_000_000
resource.setrlimit(resource.RLIMIT_AS, (room, room))
sys.argv = ["edgekit", *sys.argv[1:]]
edgekit.cli.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of Linux")
def test_memory_that_runs_out_is_told_with_the_batch_size_and_keeps_what_is_finished(here: Path) -> None:
    # A batch has hundreds of samples, and each half a megabyte of activations; everything else is small.
    random = np.random.default_rng(0)
    x = random.normal(size=(25_600, 1, 16, 16)).astype(np.float32)
    np.savez("large.npz", train_x=x, eval_x=x[:64])
    net = nn.Sequential(
        nn.Conv2d(1, 512, 1), nn.ReLU(), nn.Conv2d(512, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    save_program(here / MODEL, net.eval(), 1, 16, 16)
    Path("recipe.toml").write_text(
        '[prune]\nby = "macs"\nimportance = "magnitude"\n[train]\nbatch_size = 4096\n'
    )
    arguments = [
        "compress", MODEL, "--data", "large.npz", "--prune", "0.3", "--epochs", "1", "--recipe", "recipe.toml",
        "--preset", "fast", "--format", "onnx", "--allow-slower", "-o", "out",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SMALL_MEMORY, *arguments],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "memory" in done.stderr
    assert "batch" in done.stderr
    assert "way out: " in done.stderr
    assert list(here.glob(".out.edgekit/prune-*/done.json"))
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
        RuntimeError("could not create a primitive"),
    ],
    ids=["Python", "torch", "oneDNN"],
)
def test_memory_that_runs_out_elsewhere_is_told_with_the_stage(here: Path, error: Exception) -> None:
    def full(stage: str, detail: str) -> None:
        if stage == "data":
            raise error

    with pytest.raises(UsageError, match="memory ran out in the stage `data`") as caught:
        run(Request(here / MODEL, here / "out", data=str(here / DATA)), full)
    assert "--resume" in caught.value.way_out


def test_another_error_is_not_called_memory(here: Path) -> None:
    def broken(stage: str, detail: str) -> None:
        raise RuntimeError("could not create a primitive descriptor for a convolution")

    with pytest.raises(RuntimeError, match="descriptor"):
        run(Request(here / MODEL, here / "out", data=str(here / DATA)), broken)


def test_a_trial_that_is_not_there_is_told_before_the_data_is_read(here: Path) -> None:
    said(compress("--data", DATA, "--from-trial", "2"), "--from-trial 2", "report.json", "-o")
    assert left(here) == []


def test_a_trial_of_a_bundle_without_a_search_is_told(here: Path) -> None:
    shutil.copytree(bundle(), here / "out")
    before = (here / "out" / "report.json").read_bytes()
    said(compress("--data", DATA, "--from-trial", "2"), "--from-trial 2", "has no such trial", "none")
    assert (here / "out" / "report.json").read_bytes() == before


def test_a_database_that_cannot_be_reached_is_told_and_the_first_attempt_kept(here: Path) -> None:
    table = '[search]\nstorage = "sqlite:////no/such/folder/trials.db"'
    result = compress("--data", DATA, "--max-size-mb", "0.001", recipe=table)
    said(result, "/no/such/folder/trials.db")
    assert list(here.glob(".out.edgekit/lower-*/done.json"))
    assert not (here / "out").exists()
