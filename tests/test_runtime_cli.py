"""`edgekit-runtime`: what each command answers, and what it says when it cannot."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit_runtime.cli import _labels_of_environment, _parser, default_store, main
from edgekit_runtime.errors import InputError
from edgekit_runtime.events import Offered
from edgekit_runtime.manager import tell
from edgekit_runtime.store import Store
from support.adders import adder
from support.colours import write_bundle
from support.tiny_runs import bundle, images

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_STORE", str(tmp_path / "größe"))
    return tmp_path / "größe"


def ask(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["--json", *map(str, arguments)]) == status
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    answer: dict[str, Any] = json.loads(out)
    return answer


def another(tmp_path: Path) -> Path:
    """The same model under another version."""
    copy = shutil.copytree(bundle(), tmp_path / "another")
    manifest = (copy / "manifest.json").read_text()
    assert '"version": "1.0.0"' in manifest
    (copy / "manifest.json").write_text(manifest.replace('"version": "1.0.0"', '"version": "2.0.0"', 1))
    return copy


def test_a_version_is_installed_kept_replaced_and_brought_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "install" in ask(capsys, "status")["hint"]
    answer = ask(capsys, "install", bundle())
    assert answer["phase"] == "probation"
    assert answer["live"].startswith("model 1.0.0")
    assert ask(capsys, "activate", "--good")["phase"] == "idle"
    answer = ask(capsys, "install", another(tmp_path), "--shadow")
    assert (answer["phase"], answer["live"][:11], answer["candidate"][:11]) == (
        "shadow",
        "model 1.0.0",
        "model 2.0.0",
    )
    answer = ask(capsys, "activate")
    assert (answer["phase"], answer["live"][:11]) == ("probation", "model 2.0.0")
    answer = ask(capsys, "rollback")
    assert (answer["phase"], answer["live"][:11]) == ("idle", "model 1.0.0")
    assert list(answer["failed"].values()) == ["asked_for"]
    assert ask(capsys, "install", tmp_path / "another", status=3)["error"] == "failed_before"
    assert ask(capsys, "install", tmp_path / "another", "--forced")["live"].startswith("model 2.0.0")


def test_a_pinned_device_takes_nothing_until_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    ask(capsys, "install", bundle())
    assert ask(capsys, "pin")["pinned"]
    ask(capsys, "rollback")
    assert ask(capsys, "install", bundle(), status=3)["error"] in {"pinned", "failed_before"}
    assert not ask(capsys, "pin", "--off")["pinned"]
    assert ask(capsys, "gc")["freed_bytes"] >= 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("install", "/no/such/place"), 2, "a bundle"),
        (("activate",), 3, "nothing is in shadow"),
        (("activate", "--good"), 3, "nothing is in probation"),
        (("rollback",), 3, "nothing_to_return_to"),
        (("run", "/no/such/model", "/no/such/input"), 2, "model file"),
    ],
)
def test_what_cannot_be_done_is_said_on_stderr_with_a_way_out(
    capsys: pytest.CaptureFixture[str], store: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    Store(store).make()
    assert main(list(arguments)) == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert "way out" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("command", ["activate", "rollback", "pin", "gc"])
def test_a_store_that_is_not_there_is_said(
    capsys: pytest.CaptureFixture[str], store: Path, command: str
) -> None:
    assert main([command]) == 2
    assert str(store) in capsys.readouterr().err
    assert not store.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("agent", "--quota-mb", "nan"), ("agent", "--quota-mb", "-5"), ("agent", "--interval", "inf"),
        ("agent", "--interval", "soon"), ("bench", "x", "--threads", "0"), ("bench", "x", "--threads", "9" * 5000),
        ("bench", "x", "--seconds", "nan"), ("--store", "", "status"), ("agent", "--label", "region"),
        ("agent", "--label", "Region=eu"), ("agent", "--label", "region=" + "x" * 129),
    ],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_wrong_usage(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_what_is_decided_beside_an_agent_stands_though_the_agent_does_the_rest(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, store: Path
) -> None:
    ask(capsys, "install", bundle())
    ask(capsys, "activate", "--good")
    ask(capsys, "install", another(tmp_path), "--shadow")
    with Store(store).driven():
        assert ask(capsys, "activate")["phase"] == "probation"
        assert ask(capsys, "rollback")["live"].startswith("model 1.0.0")
        assert ask(capsys, "gc", status=2)["error"] == "store_busy"


def test_gc_leaves_what_is_coming_in_to_whoever_brings_it(
    capsys: pytest.CaptureFixture[str], store: Path
) -> None:
    ask(capsys, "install", bundle())
    ask(capsys, "activate", "--good")
    coming, half = "e" * 64, Store(store).incoming / ("f" * 64)
    tell(Store(store), Offered(coming))
    half.write_bytes(b"half")
    answer = ask(capsys, "gc")
    assert (answer["phase"], answer["freed_bytes"]) == ("fetch", 0)
    assert half.exists()
    assert answer["reports"] == ask(capsys, "status")["reports"]


def test_answers_that_are_no_numbers_are_still_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = write_bundle(adder(float("nan")), tmp_path / "bundle")
    np.save(tmp_path / "x.npy", np.zeros((1, 16), np.float32))
    capsys.readouterr()
    assert main(["--json", "run", str(model), str(tmp_path / "x.npy")]) == 0
    answer = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert answer["outputs"]["y"] == [["nan"] * 16]


def test_run_predicts_and_says_what_it_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(1))
    answer = ask(capsys, "run", bundle(), tmp_path / "x.npy", "--format", "onnx")
    assert np.shape(answer["outputs"]["output"]) == (1, 4)
    np.savez(tmp_path / "x.npz", input_1=images(1)[0])
    assert np.shape(ask(capsys, "run", bundle(), tmp_path / "x.npz")["outputs"]["output"]) == (4,)
    np.save(tmp_path / "bad.npy", np.zeros((2, 2)))
    assert ask(capsys, "run", bundle(), tmp_path / "bad.npy", status=2)["error"] == "input"
    (tmp_path / "torn.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-30])
    assert ask(capsys, "run", bundle(), tmp_path / "torn.npz", status=2)["error"] == "input"
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    assert "pickle" in ask(capsys, "run", bundle(), tmp_path / "objects.npy", status=2)["what"]


def test_bench_measures_and_doctor_lists(capsys: pytest.CaptureFixture[str]) -> None:
    answer = ask(capsys, "bench", bundle(), "--seconds", "0.05")
    assert answer["latency_ms"]["p50"] <= answer["latency_ms"]["p99"]
    assert "onnxruntime" in ask(capsys, "doctor")["onnx"]


def test_people_get_lines_and_the_module_runs_as_a_program(store: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgekit_runtime.cli", "status"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].split() == ["store", str(store)]
    helped = subprocess.run(
        [sys.executable, "-m", "edgekit_runtime.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in helped.stdout


def test_every_command_in_the_documentation_is_one() -> None:
    text = (Path(__file__).parents[1] / "docs" / "device.md").read_text(encoding="utf-8")
    lines = [
        line.partition("#")[0].split()[1:]
        for line in text.splitlines()
        if line.startswith("edgekit-runtime ")
    ]
    assert len(lines) > 10
    for words in lines:
        assert callable(_parser().parse_args(words).do)


def test_the_store_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert default_store() == tmp_path / "größe"
    monkeypatch.delenv("EDGEKIT_STORE")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert str(default_store()) == "/var/lib/edgekit"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert default_store().name == "edgekit"


def test_the_environment_sets_an_agent_and_its_options_come_before_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {
        "SERVER": "https://a",
        "DEVICE": "d",
        "CHANNEL": "beta",
        "TOKEN_FILE": "/t",
        "INTERVAL": "60",
        "QUOTA_MB": "5",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"EDGEKIT_{name}", value)
    options = _parser().parse_args(["agent", "--channel", "stable"])
    assert (options.server, options.device, options.channel) == ("https://a", "d", "stable")
    assert (options.token_file, options.interval, options.quota_mb) == (Path("/t"), 60.0, 5.0)
    monkeypatch.setenv("EDGEKIT_INTERVAL", "soon")
    with pytest.raises(SystemExit):
        _parser().parse_args(["agent"])
    assert "'soon'" in capsys.readouterr().err
    for name in given:
        monkeypatch.setenv(f"EDGEKIT_{name}", "")
    assert _parser().parse_args(["agent"]).interval == 300.0


def test_labels_come_from_the_environment_and_before_it_from_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_LABELS", "region=eu, hardware=pi4,")
    assert _labels_of_environment() == {"region": "eu", "hardware": "pi4"}
    options = _parser().parse_args(["agent", "--label", "region=us", "--label", "site=a=b"])
    assert options.label == [("region", "us"), ("site", "a=b")]
    monkeypatch.setenv("EDGEKIT_LABELS", "")
    assert _labels_of_environment() == {}
    monkeypatch.setenv("EDGEKIT_LABELS", "region")
    with pytest.raises(InputError, match="EDGEKIT_LABELS"):
        _labels_of_environment()
