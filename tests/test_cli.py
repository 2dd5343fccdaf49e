"""The command line: options, help, streams and exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgekit import __version__
from edgekit.bundle import Bundle
from edgekit.verify import verify_bundle
from support.tiny_runs import QUICK, bundle, call, compress, folder, save_program

COMMANDS = ("compress", "verify", "bench", "inspect", "doctor", "devices")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def model() -> Path:
    return folder() / "model.pt2"


def data() -> Path:
    return folder() / "data.npz"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_ends_in_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: edgekit {command}" in ANSI.sub("", result.stdout)
    assert call(command, "-h").stdout == result.stdout


def test_the_help_lists_every_command_and_the_exit_codes() -> None:
    text = ANSI.sub("", call("--help").stdout)
    assert all(re.search(rf"\b{command}\b", text) for command in COMMANDS)
    assert all(code in text for code in ("0 accepted", "2 wrong usage", "3 budget", "4 the model", "130"))


def test_without_a_command_the_help_is_shown_and_the_exit_code_says_usage() -> None:
    result = call()
    assert result.exit_code == 2
    assert "compress" in result.stdout + result.stderr


def test_the_version_is_that_of_the_package() -> None:
    assert call("--version").stdout.strip() == f"edgekit {__version__}"


def test_an_unknown_option_is_wrong_usage() -> None:
    result = call("compress", model(), "--formats", "onnx")
    assert result.exit_code == 2
    assert "--format" in ANSI.sub("", result.stderr)


def test_a_model_must_be_named() -> None:
    assert call("compress").exit_code == 2


@pytest.mark.parametrize("text", ["", "1,", "1,0,8", "1;3", "-1,3,8,8", "1.5,2"])
def test_a_shape_that_is_none_is_refused_as_it_was_written(text: str) -> None:
    result = call("inspect", model(), f"--input-shape={text}")
    assert result.exit_code == 2
    assert f"--input-shape {text}" in result.stderr


@pytest.mark.parametrize("text", ["1,3,8,8", "1x3x8x8"])
def test_a_shape_is_written_with_commas_or_crosses(text: str) -> None:
    result = call("inspect", model(), "--input-shape", text)
    assert result.exit_code == 0, result.stderr


def test_devices_as_json_and_as_a_table() -> None:
    profiles = json.loads(call("devices", "--json").stdout)
    assert {"raspberry-pi-5", "x86-64-avx2"} <= {p["name"] for p in profiles}
    assert "raspberry-pi-5" in call("devices", "raspberry-pi-5").stdout
    assert len(json.loads(call("devices", "raspberry-pi-5", "--json").stdout)) == 1


def test_inspect_tells_what_a_model_is() -> None:
    found = json.loads(call("inspect", model(), "--json").stdout)
    assert found["kind"] == "exported program"
    assert found["params"] == 276
    assert found["any_batch"] is True
    assert found["inputs"][0].endswith("float32 [1, 3, 8, 8]")
    assert found["ops"]["conv2d"] == 1
    assert "exported program" in call("inspect", model()).stdout


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "devices", "--json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == 141


@pytest.mark.slow
def test_json_prints_the_report_to_stdout_and_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "edgekit.cli", "compress", str(model()), "--data", str(data()),
            "-o", str(tmp_path / "out"), *QUICK, "--json", "--seed", "11",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == Bundle.open(tmp_path / "out").report
    assert report["accepted"] is True
    assert report["provenance"]["seed"] == 11
    assert report["provenance"]["command"].startswith("edgekit compress ")
    # Progress is on stderr, one line a stage.
    assert [line.split()[-1] for line in done.stderr.splitlines()] == [
        "load", "data", "clean", "quantize", "lower", "prove", "evaluate", "time", "bundle",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_missed_budget_is_three_and_the_files_are_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = compress(model(), "--data", data(), "-o", out, "--max-size-mb", "0.00001")
    assert result.exit_code == 3, result.stderr
    assert "refused" in result.stdout
    report = Bundle.open(out).report
    assert report["accepted"] is False
    assert any("size" in reason or "MB" in reason or "bytes" in reason for reason in report["reasons"])
    assert verify_bundle(out).holds


class Scaled(nn.Module):
    """Ends in an op that LiteRT lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.special.erfcx(self.conv(x).relu().mean((2, 3))))


class Inverse(nn.Module):
    """Neither torch.onnx nor LiteRT has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erfinv(torch.tanh(x) * 0.5)


@pytest.mark.slow
def test_an_op_that_a_format_lacks_is_four_and_the_other_formats_are_made(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, out = save_program(tmp_path / "scaled.pt2", Scaled().eval()), tmp_path / "out"
    result = call("compress", path, "-o", out, *QUICK, "--format", "tflite,onnx")
    assert result.exit_code == 4, result.stderr
    # The op, the line of the user's source, the way out.
    assert "tflite: cannot lower aten.special_erfcx" in result.stderr
    source, line = re.search(r"\(([^()]*test_cli\.py):(\d+)\)", result.stderr).groups()
    assert "erfcx" in Path(source).read_text().splitlines()[int(line) - 1]
    assert "leave tflite out of --format" in result.stderr
    assert [a.format for a in Bundle.open(out).manifest.artifacts] == ["onnx"]
    report = Bundle.open(out).report
    assert report["accepted"] is False
    assert [f["format"] for f in report["failures"]] == ["tflite"]


@pytest.mark.slow
def test_a_model_that_no_format_has_a_form_for_is_four_and_nothing_is_left(tmp_path: Path) -> None:
    path = save_program(tmp_path / "inverse.pt2", Inverse(), 16)
    result = call("compress", path, "-o", tmp_path / "out", *QUICK, "--format", "onnx,tflite")
    assert result.exit_code == 4, result.stderr
    for name in ("onnx", "tflite"):
        assert f"{name}: cannot lower aten.erfinv" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["inverse.pt2"]


@pytest.mark.slow
def test_integer_ends_and_channels_last_are_in_the_tflite_file_and_proven(tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    out = tmp_path / "out"
    result = call(
        "compress", model(), "--data", data(), "-o", out, *QUICK,
        "--format", "tflite", "--io", "int8", "--layout", "nhwc",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    artifact = Bundle.open(out).manifest.artifact("tflite")
    assert (artifact.io_dtype, artifact.input_layout) == ("int8", "nhwc")
    interpreter = Interpreter(str(out / "model.tflite"))
    (given,), (taken,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["shape"].tolist() == [1, 8, 8, 3]
    for detail, grid in ((given, artifact.input_grids[0]), (taken, artifact.output_grids[0])):
        assert detail["dtype"] == np.int8
        scale, zero_point = detail["quantization"]
        assert scale == pytest.approx(grid.scale, rel=1e-6)
        assert zero_point == grid.zero_point
    assert verify_bundle(out).holds


@pytest.mark.slow
def test_a_target_whose_kernels_saturate_gets_weights_of_seven_bits(tmp_path: Path) -> None:
    def largest(out: Path) -> int:
        tensors = onnx.load(out / "model.onnx").graph.initializer
        arrays = [numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8]
        return max(int(np.abs(a.astype(int)).max()) for a in arrays if a.ndim >= 2)

    out = tmp_path / "out"
    result = compress(model(), "--data", data(), "-o", out, "--target", "x86-64-avx2")
    assert result.exit_code == 0, result.stderr
    assert largest(out) == 63
    assert largest(bundle()) == 127


@pytest.mark.slow
def test_a_metric_of_the_users_own_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text(
        "def share_of_class_two(outputs, labels):\n    return float((outputs[0].argmax(1) == 2).mean())\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = compress(model(), "--data", data(), "-o", "out", "--metric", "own_metric:share_of_class_two")
    assert result.exit_code == 0, result.stderr
    baseline = Bundle.open("out").report["baseline"]
    assert baseline["metric"] == "own_metric:share_of_class_two"
    assert 0 <= baseline["value"] <= 1


@pytest.mark.slow
def test_an_earlier_bundle_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(bundle(), out)
    result = compress(model(), "--data", data(), "-o", out)
    assert result.exit_code == 0, result.stderr
    assert [a.format for a in Bundle.open(out).manifest.artifacts] == ["onnx"]
    assert not (out / "model.tflite").exists()
