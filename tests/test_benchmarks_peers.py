"""Peers side by side: each in an environment of its own, and one that fails is named with its reason."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# pytest puts tests/ on the path, not the root of the checkout where benchmarks/ lies.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.engines import OPENERS
from benchmarks.machine import machine
from benchmarks.peers import environments
from benchmarks.peers.environments import HERE, REQUIREMENTS, NotInstalledError, environment
from benchmarks.peers.inputs import Inputs
from benchmarks.peers.page import page
from benchmarks.peers.served import PeerError, Served
from benchmarks.peers.table import CANDIDATES, CONTESTS, Candidate, FailedError, obtain
from benchmarks.peers.tables import failures, markdown

from support.colours import SIDE, colours

FOLDER = Path(environments.__file__).parent


def test_contests_name_candidates_that_exist() -> None:
    names = {candidate.name for candidate in CANDIDATES}
    assert all({ours, theirs} <= names for ours, theirs, _ in CONTESTS)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: candidate.name)
def test_a_candidate_has_a_module_an_environment_and_a_runtime(candidate: Candidate) -> None:
    module, _, function = candidate.build.partition(":")
    assert f"def {function}(" in (FOLDER / f"{module}.py").read_text()
    assert {candidate.environment, candidate.runtime} <= REQUIREMENTS.keys()
    assert candidate.suffix in OPENERS


# Environments


def test_what_does_not_install_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environments, "REQUIREMENTS", {"gone": (str(tmp_path / "gone-1-py3-none-any.whl"),)})
    told: list[str] = []
    with pytest.raises(NotInstalledError, match="gone-1"):
        environment("gone", tmp_path / "environments", told=told.append)
    assert told[0].startswith("gone: installing")
    assert not list(tmp_path.rglob("versions.json")), "the next run tries again"


# Conversion and runtime, in this environment


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    """A real network and two samples; no TFLite file."""
    found = Inputs(tmp_path / "network" / "inputs")
    found.folder.mkdir(parents=True)
    found.onnx.write_bytes(colours().content["model.onnx"])
    np.save(found.samples, np.random.default_rng(0).random((2, 3, SIDE, SIDE), np.float32))
    return found


def the(name: str) -> Candidate:
    return next(each for each in CANDIDATES if each.name == name)


def test_a_file_is_converted_once_and_anew_for_other_samples(inputs: Inputs) -> None:
    here = environment(HERE)
    first = obtain(the("onnx-float"), inputs, here)
    assert first.file.read_bytes() == inputs.onnx.read_bytes()
    assert first.size_bytes == inputs.onnx.stat().st_size
    assert first.peak_mb > 0
    written = first.file.stat().st_mtime_ns
    assert obtain(the("onnx-float"), inputs, here) == first
    assert first.file.stat().st_mtime_ns == written
    np.save(inputs.samples, np.zeros((1, 3, SIDE, SIDE), np.float32))
    assert obtain(the("onnx-float"), inputs, here).file != first.file


def test_a_peer_that_refuses_is_told_by_its_own_words(inputs: Inputs) -> None:
    with pytest.raises(FailedError, match="litert-torch does not convert this network"):
        obtain(the("litert-float"), inputs, environment(HERE))


def test_a_peer_that_ends_the_process_is_told_by_its_last_line(inputs: Inputs) -> None:
    gone = replace(the("onnx-float"), build="given:nothing")
    with pytest.raises(FailedError, match="has no attribute 'nothing'"):
        obtain(gone, inputs, environment(HERE))


def test_a_file_is_run_in_a_process_of_its_own(inputs: Inputs, tmp_path: Path) -> None:
    file, out = tmp_path / "model.onnx", tmp_path / "y.npy"
    file.write_bytes(inputs.onnx.read_bytes())
    with Served(environment(HERE), file) as served:
        assert served.ask("predict", x=str(inputs.samples), y=str(out)) == {}
        np.testing.assert_allclose(np.load(out), 20 * inputs.calibration().mean((2, 3)), rtol=1e-5)
        sample = tmp_path / "sample.npy"
        np.save(sample, inputs.calibration()[:1])
        found = served.ask("prepare", x=str(sample))
        assert 0 < found["ms"] < 1000
        assert found["memory_mb"] >= 0
        assert 0 < served.ask("time", repeats=3)["ms"] < 1000


def test_a_runtime_that_does_not_read_a_file_is_told_by_its_last_line(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no model")
    with Served(environment(HERE), file) as served, pytest.raises(PeerError, match="INVALID_PROTOBUF"):
        served.ask("prepare", x="")


# The page


def result(**more: Any) -> dict[str, Any]:
    measured = {
        "latency_ms": {"p50": 1.5}, "quality": {"agreement": 100.0, "snr_db": 99.0, "top1": 91.5, "n": 4},
        "size_bytes": 1234567, "memory_mb": 12.0, "seconds": 3.5, "peak_mb": 400,
    }  # fmt: skip
    candidates = {
        "edgekit-onnx": measured,
        "ort-static": {"failed": "ValueError: a <b> | c"},
        "nncf": {"failed": "x"},
    }
    return {
        "machine": machine(),
        "environments": {"nncf": {"failed": "no <wheel>"}, "edgekit": {"versions": {"edgekit": "0.1.0"}}},
        "networks": {"Net": {"candidates": candidates, "ratios": {"edgekit-onnx/ort-static": 0.98}}},
        **more,
    }


def test_the_table_has_every_figure_and_names_who_is_missing_once() -> None:
    text = markdown(result())
    row = next(line for line in text.splitlines() if line.startswith("| edgekit-onnx |"))
    assert row == "| edgekit-onnx | 1.50 ms | 100.00 | 99.0 dB | 91.50 | 1.23 MB | 12 MB | 3.5 s | 400 MB |"
    assert "0.980" in text
    assert failures(result()) == [
        ("nncf", "does not install: no <wheel>"), ("ort-static, Net", "ValueError: a <b> | c"),
    ]  # fmt: skip
    assert r"| ort-static, Net | ValueError: a <b> \| c |" in text


def test_the_page_escapes_what_peers_say_and_fetches_nothing() -> None:
    text = page(result())
    assert "a &lt;b&gt; | c" in text
    assert "<svg" in text
    assert "http" not in text.replace("http-equiv", "")


def test_points_that_lie_on_one_another_have_one_label() -> None:
    found = result()
    candidates = found["networks"]["Net"]["candidates"]
    candidates["edgekit-tflite"] = candidates["edgekit-onnx"]
    assert ">edgekit-onnx, edgekit-tflite<" in page(found)


def test_nothing_measured_is_a_page_all_the_same() -> None:
    empty = result(networks={"Net": {"candidates": {"nncf": {"failed": "x"}}, "ratios": {}}})
    assert "no &lt;wheel&gt;" in page(empty)
    assert "Not measured" in markdown(empty)
