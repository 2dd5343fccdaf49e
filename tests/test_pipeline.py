"""The whole of `compress`: same bytes anywhere, what is given is not changed, scripts and notebooks."""

import hashlib
import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

import edgekit
from edgekit.bundle import Bundle
from edgekit.progress import STAGES, shown
from support.tiny_runs import QUICK, bundle, folder, images, labels, network

pytestmark = pytest.mark.slow


def artifacts(out: Path) -> dict[str, str]:
    """Hash of every file below a bundle but the report, which holds times."""
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and not p.name.startswith("report.")
    }


def test_the_same_command_gives_the_same_bytes_in_another_directory(tmp_path: Path) -> None:
    # Another process, another current directory, another hash seed, other paths of model and data.
    elsewhere = tmp_path / "größer als vorher"
    elsewhere.mkdir()
    for name in ("model.pt2", "data.npz"):
        (elsewhere / name).write_bytes((folder() / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "compress", "model.pt2", "--data", "data.npz", "-o", "bundle",
         *QUICK[:2], "--allow-slower"],
        cwd=elsewhere, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    here, there = artifacts(bundle()), artifacts(elsewhere / "bundle")
    assert {"manifest.json", "golden.npz", "model.onnx", "model.tflite"} <= set(here)
    assert any(name.startswith("model.mlpackage/") for name in here)
    assert there == here


def test_the_module_that_is_given_stays_as_it_was(tmp_path: Path) -> None:
    module = network().train()
    module[1].eval()
    module[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = images()
    made = edgekit.compress(
        module, data={"x": x, "y": labels(x)}, out=tmp_path / "out", preset="fast", formats=["onnx"],
        allow_slower=True,
    )  # fmt: skip
    assert isinstance(made, Bundle)
    assert made.report["accepted"] is True
    assert [m.training for m in module.children()] == [True, False, True, True, True, True]
    assert module.training
    assert not module[0].weight.requires_grad
    assert module[5].weight.requires_grad
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_a_script_needs_no_guard_and_no_data(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "import edgekit\n"
        "print('once')\n"
        "model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(),\n"
        "                            torch.nn.Linear(288, 4))\n"
        "bundle = edgekit.compress(model, input_shape=(1, 3, 8, 8), preset='fast', formats=['onnx'],\n"
        "                          allow_slower=True)\n"
        "print(bundle.path.name, bundle.report['artifacts']['onnx']['proof']['holds'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # A worker that imported the script again would print again.
    assert done.stdout.splitlines() == ["once", "Sequential-edgekit True"]
    notes = " ".join(Bundle.open(tmp_path / "Sequential-edgekit").report["notes"])
    assert "Nothing was measured on real data" in notes
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Sequential-edgekit", "train.py"]


def test_the_callers_random_state_is_not_spent(tmp_path: Path) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    edgekit.compress(
        network_on_vectors(), input_shape=(1, 6), out=tmp_path / "out", preset="fast", formats=["onnx"],
        allow_slower=True,
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)


def test_a_terminal_shows_every_stage_also_where_a_search_turns_back() -> None:
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True, width=120)) as progress:
        for stage in (*STAGES, "prune"):
            progress(stage, f"{stage} is on")
            time.sleep(0.15)  # the screen is drawn ten times a second
    assert all(f"{stage} is on" in screen.getvalue() for stage in STAGES)


def network_on_vectors() -> nn.Module:
    state = torch.get_rng_state()
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.set_rng_state(state)
    return module


def test_progress_names_every_stage_in_order(tmp_path: Path) -> None:
    told: list[str] = []
    edgekit.compress(
        network_on_vectors(), input_shape=(1, 6), out=tmp_path / "out", preset="fast", formats=["onnx"],
        allow_slower=True, progress=lambda stage, _: told.append(stage),
    )  # fmt: skip
    order = list(dict.fromkeys(told))
    assert order == ["load", "data", "clean", "quantize", "lower", "prove", "evaluate", "time", "bundle"]
    names = [stage["name"] for stage in Bundle.open(tmp_path / "out").report["stages"]]
    assert names == order[:-1]
