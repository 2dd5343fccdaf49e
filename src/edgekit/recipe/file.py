"""Reads a recipe: the preset's row, then the file, then the options of the command line; later ones win key by key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError
from edgekit.recipe.rules import OPTIONS, PRESETS, RULES, Rule, apply, unknown, wrong
from edgekit.recipe.sections import SECTIONS, Recipe
from edgekit.recipe.targets import preferred

MAX_FILE_BYTES = 1_000_000


def load_recipe(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe; formats, layout and ends that nobody set are those that the targets prefer.

    Args:
        path: a TOML file, None for the preset alone.
        overrides: options of the command line in the shape of the file, `{"budget": {"max_drop": 0.02}}`;
            they win over the file key by key, and a preset named here replaces the file's.

    Raises:
        UsageError: the file cannot be read, or a key or value is wrong.
        ProfileError: a target is not known.
    """
    tree = {} if path is None else _checked(_read_toml(path), str(path))
    for key, value in _checked(overrides or {}, OPTIONS).items():
        tree[key] = {**tree.get(key, {}), **value} if key in SECTIONS else value
    preset = str(tree.get("preset", "balanced"))
    tree["quantize"] = {**PRESETS[preset], **tree.get("quantize", {})}
    tree = {**preferred(tree.get("targets", ())), **tree}
    return Recipe(
        **{key: SECTIONS[key](**value) if key in SECTIONS else value for key, value in tree.items()}
    )


def _read_toml(path: Path) -> dict[str, Any]:
    way_out = "Give a recipe in TOML; docs/recipe.md shows one."
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise UsageError(
                f"{path}: larger than {MAX_FILE_BYTES} bytes", expected="a TOML file", way_out=way_out
            )
        return tomllib.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", expected="a readable file", way_out=way_out) from error
    except (ValueError, RecursionError) as error:  # malformed TOML or UTF-8, or nested without end
        raise UsageError(f"{path}: {error}", expected="a TOML file in UTF-8", way_out=way_out) from error


def _checked(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the tree with every value read by its rule."""
    known = (*RULES[""], *SECTIONS)
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in known:
            raise unknown(source, key, key, known)
        if key not in SECTIONS:
            result[key] = apply(RULES[""][key], value, source, key)
            continue
        if not isinstance(value, Mapping):
            raise wrong(source, key, value, Rule(f"a table, [{key}]", lambda _: None))
        result[key] = {}
        for name, item in value.items():
            if name not in RULES[key]:
                raise unknown(source, f"{key}.{name}", name, tuple(RULES[key]))
            result[key][name] = apply(RULES[key][name], item, source, f"{key}.{name}")
    return result
