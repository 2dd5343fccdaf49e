"""Which way imports go, and what stays unimported until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch", "torchao", "onnx", "onnxruntime", "coremltools", "litert_torch", "ai_edge_litert", "jax", "optuna",
    "neural_compressor",
)  # fmt: skip
LISTING = "import sys; print(*sorted(name for name in sys.modules if '.' not in name))"


def imported_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after running `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{LISTING}"], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.splitlines()[-1].split())


def contracts() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [each["name"] for each in settings["tool"]["importlinter"]["contracts"]]


def lint(config: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--config", str(config)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_every_import_goes_the_way_of_the_contracts() -> None:
    done = lint(ROOT / "pyproject.toml")

    assert done.returncode == 0, done.stdout
    assert f"{len(contracts())} kept, 0 broken" in done.stdout


def test_an_import_against_the_direction_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "contracts.toml"
    wrong.write_text(
        '[tool.importlinter]\nroot_packages = ["edgekit", "edgekit_converters"]\n'
        '[[tool.importlinter.contracts]]\nname = "upside down"\ntype = "layers"\n'
        'layers = ["edgekit_converters", "edgekit"]\n'
    )

    done = lint(wrong)

    assert done.returncode != 0
    assert "0 kept, 1 broken" in done.stdout


RUN = """
import sys
from edgekit.cli import main
sys.argv = ["edgekit", *{arguments!r}]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
"""


@pytest.mark.parametrize(
    "code",
    [
        "import edgekit",
        "import edgekit.cli",
        "import edgekit.bench.command, edgekit.bench.page",
        RUN.format(arguments=["--help"]),
        RUN.format(arguments=["compress", "--help"]),
        RUN.format(arguments=["bench", "--help"]),
        RUN.format(arguments=["devices"]),
    ],
    ids=["package", "command line", "bench", "--help", "compress --help", "bench --help", "devices"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    assert not imported_by(code) & set(HEAVY)


def test_compress_is_there_when_it_is_asked_for() -> None:
    found = imported_by("import edgekit; assert callable(edgekit.compress) and edgekit.Bundle")

    assert "edgekit" in found


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import edgekit

    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = edgekit.compres  # type: ignore[attr-defined]


# Of the agent alone: an application that runs a model loads none of it.
AGENT = {("trust.py", "tuf"), ("fetcher.py", "tuf"), ("transport.py", "urllib3")}


def test_the_runtime_imports_numpy_the_standard_library_and_itself_and_only_its_agent_more() -> None:
    files = sorted((ROOT / "runtime" / "edgekit_runtime").rglob("*.py"))
    assert files

    foreign = {(file.name, name) for file in files for name in roots(file)}

    assert {
        pair
        for pair in foreign
        if pair[1] not in sys.stdlib_module_names and pair[1] not in {"edgekit_runtime", "numpy"}
    } == AGENT


def test_what_serves_loads_nothing_of_the_agent() -> None:
    found = imported_by("import edgekit_runtime.runtime, edgekit_runtime.cli, edgekit_runtime.trial")

    assert "edgekit_runtime" in found
    assert not found & {"tuf", "urllib3", "securesystemslib", "cryptography"}


def test_the_runtime_needs_no_third_party_module_to_be_imported() -> None:
    code = "import edgekit_runtime, edgekit_runtime.contract, edgekit_runtime.strict_json"

    added = imported_by(code) - imported_by("pass")

    assert {name for name in added if name not in sys.stdlib_module_names} == {"edgekit_runtime"}


def test_the_runtime_parses_as_the_oldest_python_it_promises() -> None:
    files = sorted((ROOT / "runtime" / "edgekit_runtime").rglob("*.py"))

    assert [file.name for file in files if not parses_as(file.read_text(encoding="utf-8"), (3, 10))] == []
    assert files
    assert not parses_as("try:\n    pass\nexcept* OSError:\n    pass\n", (3, 10)), "the check sees nothing"


def parses_as(code: str, version: tuple[int, int]) -> bool:
    try:
        ast.parse(code, feature_version=version)
    except SyntaxError:
        return False
    return True


def roots(file: Path) -> set[str]:
    """Top-level names of everything that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found
