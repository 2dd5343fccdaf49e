"""The files that set up a fresh clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PINS = dict(
    re.fullmatch(r"([^=]+)==(.+)", line).groups()  # type: ignore[union-attr]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def requirements() -> list[Requirement]:
    """Everything that pyproject.toml asks for, extras included, less our own distributions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    return [each for each in map(Requirement, lines) if not each.name.startswith("edgekit")]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_to_a_version_that_it_allows(requirement: Requirement) -> None:
    assert PINS[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_are_plain_versions_in_order() -> None:
    assert list(PINS) == sorted(PINS)
    assert all(Version(version).local is None for version in PINS.values())


def test_torch_is_pinned_to_the_build_without_cuda() -> None:
    assert PINS["torch"] == "2.13.0"
    assert Version(PINS["numpy"]) < Version("2.4")


def test_versions_of_the_two_distributions_agree() -> None:
    toolkit, runtime = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in (".", "runtime")
    )

    assert f"edgekit-runtime=={runtime['version']}" in toolkit["dependencies"]


@pytest.mark.parametrize(
    "script", [".ci/run", "scripts/check", "scripts/arm64", "scripts/tflite-runtime", "scripts/without-vnni"]
)
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", script], cwd=ROOT, check=True)


def test_make_explains_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)

    assert re.findall(r"^make (\w+)", done.stdout, flags=re.MULTILINE) == phony.split()[1:]


def test_an_interpreter_that_is_too_old_is_named(tmp_path: Path) -> None:
    for file in ("Makefile", "pyproject.toml", "constraints.txt", "runtime/pyproject.toml"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())

    done = subprocess.run(
        ["make", "demo", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert "Python 3.11 or newer" in done.stderr


def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise() -> None:
    code = "import os, edgekit; print(os.environ['GOMP_SPINCOUNT'])"
    free = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}

    said = [
        subprocess.run(
            [sys.executable, "-c", code], env=free | extra, capture_output=True, text=True, check=True
        ).stdout.strip()
        for extra in ({}, {"GOMP_SPINCOUNT": "7"})
    ]

    assert said == ["4000", "7"]
