"""The pages in docs/ say what the code does: keys, defaults, options, links."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.support.sample_report import accepted

from edgekit import recipe
from edgekit.cli import app
from edgekit.data.preprocessing import Preprocessing
from edgekit.recipe.rules import RULES
from edgekit_runtime import contract
from edgekit_runtime.sound import Sound

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")])


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found.group(1)


def rows(text: str) -> list[list[str]]:
    """Body rows of the tables in a text, cell by cell."""
    cells = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [row for row in cells[1:] if not set(row[0]) <= set("-: ")]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def toml_value(value: object) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


RECIPE_SECTIONS = {
    "": ("Top of the file", recipe.Recipe),
    "quantize": ("[quantize]", recipe.Quantize),
    "prune": ("[prune]", recipe.Prune),
    "train": ("[train]", recipe.Train),
    "qat": ("[qat]", recipe.Qat),
    "search": ("[search]", recipe.Search),
    "budget": ("[budget]", recipe.Budget),
    "model": ("[model]", recipe.ModelCard),
}


@pytest.mark.parametrize("name", RECIPE_SECTIONS)
def test_recipe_page_lists_every_key_with_its_default_and_its_rule(name: str) -> None:
    title, kind = RECIPE_SECTIONS[name]
    defaults = kind()
    expected = [
        [f"`{key}`", toml_value(_plain(getattr(defaults, key))), rule.expected]
        for key, rule in RULES[name].items()
    ]

    assert rows(section(page("recipe.md"), title)) == expected


def test_recipe_page_lists_the_preprocessing_with_its_defaults() -> None:
    defaults = Preprocessing()
    expected = [
        [f"`{field.name}`", toml_value(_plain(getattr(defaults, field.name)))]
        for field in dataclasses.fields(Preprocessing)
    ]

    assert [row[:2] for row in rows(section(page("recipe.md"), "[preprocessing]"))] == expected


def test_recipe_page_lists_what_becomes_of_sound_with_its_defaults() -> None:
    expected = [[f"`{field.name}`", toml_value(field.default)] for field in dataclasses.fields(Sound)]

    assert [row[:2] for row in rows(section(page("recipe.md"), "[preprocessing.sound]"))] == expected


def test_recipe_page_lists_the_presets_as_they_are() -> None:
    found = {row[0].strip("`"): row[1:] for row in rows(section(page("recipe.md"), "Presets"))}
    keys = next(iter(recipe.PRESETS.values()))

    assert found == {
        key: [toml_value(_plain(preset[key])) for preset in recipe.PRESETS.values()] for key in keys
    }


def test_the_recipe_shown_is_one_that_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", page("recipe.md"), flags=re.DOTALL)
    file = tmp_path / "recipe.toml"
    file.write_text(example, encoding="utf-8")

    read = recipe.load_recipe(file)

    assert read.budget.max_drop == tomllib.loads(example)["budget"]["max_drop"]
    assert Preprocessing.from_dict(read.preprocessing).crop == 224


@pytest.mark.parametrize("title", ["report.json", "baseline", "artifacts.&lt;format&gt;", "layers[]"])
def test_report_page_lists_the_keys_of_the_report(title: str) -> None:
    report = accepted()
    trees: dict[str, dict[str, Any]] = {
        "report.json": report,
        "baseline": report["baseline"],
        "artifacts.&lt;format&gt;": report["artifacts"]["onnx"],
        "layers[]": report["layers"][0],
    }
    listed = [name.removesuffix("[]").split(".")[0] for name in keys(page("report.md"), title)]

    assert sorted(listed) == sorted(trees[title])


def test_report_page_lists_what_lies_in_nested_keys() -> None:
    text, report = page("report.md"), accepted()
    meanings = {row[0]: names(row[1]) for title in ("report.json", "artifacts.&lt;format&gt;", "baseline")
                for row in rows(section(text, title))}  # fmt: skip

    assert sorted(meanings["`provenance`"]) == sorted(report["provenance"])
    assert sorted(meanings["`budget`"]) == sorted(report["budget"])
    assert sorted(meanings["`model`"]) == sorted(report["model"])
    assert sorted(meanings["`proof`"]) == sorted(report["artifacts"]["onnx"]["proof"])
    assert sorted(meanings["`latency_ms`"]) == sorted(report["baseline"]["latency_ms"])
    assert sorted(n.removesuffix("[]") for n in meanings["`stages[]`"]) == sorted(report["stages"][0])


def test_report_page_lists_the_keys_of_the_manifest() -> None:
    manifest = contract.Manifest(
        name="a",
        version="1",
        inputs=(contract.TensorSpec("x", "float32", (-1, 3)),),
        outputs=(contract.TensorSpec("y", "float32", (-1, 3)),),
        artifacts=(contract.Artifact("onnx", "model.onnx", "0" * 64, 1, "float32", (None,), (None,)),),
    )
    tree = json.loads(manifest.to_json())
    text = page("report.md")
    top, _, each = section(text, "manifest.json").partition("Each of")

    def listed(part: str) -> list[str]:
        return sorted(name.removesuffix("[]") for row in rows(part) for name in names(row[0]))

    assert listed(top) == sorted(tree)
    assert listed(each) == sorted(tree["artifacts"][0])


def keys(text: str, title: str) -> list[str]:
    return [name for row in rows(section(text, title)) for name in names(row[0])]


def options_of(command: str) -> set[str]:
    """Every spelling of every option, `--help` aside."""
    parameters = commands()[command].params
    return {o for p in parameters if p.param_type_name == "option" for o in (*p.opts, *p.secondary_opts)} - {
        "--help",
        "-h",
    }


def commands() -> dict[str, Any]:
    found: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return found


def test_cli_page_has_a_section_per_command() -> None:
    described = re.findall(r"^## edgekit (\w+)", page("cli.md"), flags=re.MULTILINE)

    assert sorted(described) == sorted(commands())


@pytest.mark.parametrize("title", ["compress MODEL", "bench PATH..."])
def test_cli_page_lists_the_options_of_long_commands(title: str) -> None:
    listed = {
        word for row in rows(section(page("cli.md"), f"edgekit {title}")) for name in names(row[0])
        for word in name.split() if word.startswith("-")
    }  # fmt: skip

    assert listed == options_of(title.split(maxsplit=1)[0])


@pytest.mark.parametrize("command", ["verify", "inspect", "devices", "doctor"])
def test_cli_page_names_the_options_of_the_other_commands(command: str) -> None:
    text = next(t for t in page("cli.md").split("\n## ") if t.startswith(f"edgekit {command}"))

    assert options_of(command) <= set(names(text))


def test_cli_page_lists_the_exit_codes_of_the_errors() -> None:
    from edgekit import errors

    codes = {getattr(errors, name).exit_code for name in errors.__all__ if name != "EdgekitError"}
    listed = {int(row[0]) for row in rows(section(page("cli.md"), "Exit status"))}

    assert listed == codes | {0, 3}  # a missed budget is a result, not an error


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", file.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        other = (file.parent / path) if path else file
        assert other.exists(), f"{file.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}, target


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"\]\((\d{4}-[^)]+)\)", (folder / "README.md").read_text(encoding="utf-8"))

    assert listed == sorted(file.name for file in folder.glob("[0-9]*.md"))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
