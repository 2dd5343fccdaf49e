"""The recipe: preset, then file, then options; and every mistake named with its nearest right spelling."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.recipe import PRESETS, Budget, Quantize, Recipe, load_recipe

FULL = """
preset = "max"
formats = ["onnx", "tflite"]
targets = ["raspberry-pi-4"]
io = "int8"
layout = "nhwc"
metric = "my_package.metrics:kappa"
seed = 7

[quantize]
observers = ["entropy"]
percentile = 99
equalize = "try"
bias_correction = true
damage = false
calibration_size = 32
weight_bits = 7
keep_float = ["head.*", "größe"]

[budget]
max_drop = 0
max_latency_ms = 2.5
max_size_mb = 4
allow_slower = true

[model]
name = "vögel"
version = "2.0.1"
task = "classification"
labels = ["Amsel", "Drossel"]

[device]
max_latency_ms = 40

[preprocessing]
resize = 256
crop = 224
mean = [127, 127, 127]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_key_of_a_file_arrives(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, FULL))
    assert recipe.formats == ("onnx", "tflite")
    assert recipe.quantize == Quantize(
        observers=("entropy",),
        percentile=99.0,
        equalize="try",
        bias_correction=True,
        damage=False,
        calibration_size=32,
        weight_bits=7,
        keep_float=("head.*", "größe"),
    )
    assert recipe.budget == Budget(max_drop=0.0, max_latency_ms=2.5, max_size_mb=4.0, allow_slower=True)
    assert recipe.model.labels == ("Amsel", "Drossel")
    assert recipe.device.max_latency_ms == 40.0
    assert recipe.preprocessing == {"resize": 256, "crop": 224, "mean": [127, 127, 127]}
    assert (recipe.io, recipe.layout, recipe.metric, recipe.seed) == (
        "int8",
        "nhwc",
        "my_package.metrics:kappa",
        7,
    )


def test_without_a_file_the_recipe_is_the_default() -> None:
    assert load_recipe() == Recipe()
    assert Recipe().quantize.observers == PRESETS["balanced"]["observers"]


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "")) == Recipe()


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbfseed = 3\n")
    assert load_recipe(path).seed == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_what_nobody_said(preset: str) -> None:
    quantize = load_recipe(overrides={"preset": preset, "quantize": {"damage": False}}).quantize
    assert quantize.observers == PRESETS[preset]["observers"]
    assert quantize.calibration_size == PRESETS[preset]["calibration_size"]
    assert quantize.damage is False


def test_options_win_over_the_file_key_by_key(tmp_path: Path) -> None:
    path = write(tmp_path, 'preset = "fast"\n[budget]\nmax_drop = 0.5\nmax_size_mb = 1\n')
    recipe = load_recipe(path, {"preset": "max", "budget": {"max_drop": 0.02}})
    assert recipe.budget == Budget(max_drop=0.02, max_size_mb=1.0)
    assert recipe.quantize.observers == PRESETS["max"]["observers"]


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("sead = 1", "sead", "seed"),
        ("[quantise]\n", "quantise", "quantize"),
        ("[quantize]\nobserver = ['mse']", "quantize.observer", "observers"),
        ("[budget]\nmax_latency = 1", "budget.max_latency", "max_latency_ms"),
        ("zzzzzz = 1", "zzzzzz", "Remove"),
    ],
)
def test_an_unknown_key_is_named_with_its_close_match(tmp_path: Path, text: str, key: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text))
    assert caught.value.what == f"{tmp_path / 'recipe.toml'}: unknown key {key}"
    assert hint in caught.value.way_out


@pytest.mark.parametrize(
    ("text", "shown", "expected"),
    [
        ('preset = "fastest"', 'preset = "fastest"', '"fast"'),
        ("seed = -1", "seed = -1", "0 to 4294967295"),
        ("seed = 1.0", "seed = 1.0", "whole number"),
        ("seed = true", "seed = true", "whole number"),
        ('formats = "onnx"', 'formats = "onnx"', "a list"),
        ("formats = []", "formats = []", "a list"),
        ('formats = ["onnx", "onnx"]', 'formats = ["onnx", "onnx"]', "at most once"),
        ("formats = [[1]]", "formats = [[1]]", "a list"),
        ('metric = "no such"', 'metric = "no such"', "module:callable"),
        ("metric = 1", "metric = 1", "module:callable"),
        ("quantize = 3", "quantize = 3", "[quantize]"),
        ("preprocessing = 3", "preprocessing = 3", "a table"),
        ("[quantize]\npercentile = 50", "quantize.percentile = 50", "above 50"),
        ("[quantize]\npercentile = 100.1", "quantize.percentile = 100.1", "at most 100"),
        ("[quantize]\npercentile = nan", "quantize.percentile = NaN", "a number"),
        ("[quantize]\nweight_bits = 3", "quantize.weight_bits = 3", "4 to 8"),
        ("[quantize]\ncalibration_size = 0", "quantize.calibration_size = 0", "from 1"),
        ('[quantize]\nequalize = "yes"', 'quantize.equalize = "yes"', '"try"'),
        ('[quantize]\nkeep_float = [""]', 'quantize.keep_float = [""]', "layer names"),
        ("[budget]\nmax_drop = inf", "budget.max_drop = Infinity", "a number"),
        ("[budget]\nmax_latency_ms = 0", "budget.max_latency_ms = 0", "above 0"),
        ("[budget]\nallow_slower = 1", "budget.allow_slower = 1", "true or false"),
        ("targets = [2026-01-01]", 'targets = ["2026-01-01"]', "profile names"),
    ],
)
def test_a_wrong_value_is_named_with_file_key_value_and_expectation(
    tmp_path: Path, text: str, shown: str, expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text))
    assert caught.value.what == f"{tmp_path / 'recipe.toml'}: {shown}"
    assert expected in caught.value.expected
    assert caught.value.way_out


def test_a_misspelt_choice_gets_its_close_match(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='Did you mean "tflite"'):
        load_recipe(write(tmp_path, 'formats = ["onnx", "tf-lite"]'))


def test_a_wrong_option_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, "seed = 1"), {"budget": {"max_drop": -1}})
    assert caught.value.what == "--max-drop = -1"


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"a = [" * 5000, b"#" * 1_000_001])
def test_what_is_no_toml_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"broken\.toml"):
        load_recipe(path)


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="directory"):
        load_recipe(tmp_path)


def test_a_recipe_built_in_python_is_checked_too() -> None:
    with pytest.raises(UsageError, match=r"quantize\.weight_bits = 3"):
        Quantize(weight_bits=3)
    with pytest.raises(UsageError, match="io = "):
        Recipe(io="float16")
    built: Any = Recipe(formats=["onnx"])  # type: ignore[arg-type]
    assert built.formats == ("onnx",)
    with pytest.raises(FrozenInstanceError):
        built.seed = 2


def test_the_digest_follows_the_content_and_not_the_spelling(tmp_path: Path) -> None:
    spelt_out = load_recipe(
        write(tmp_path, 'seed = 0\npreset = "balanced"\n[budget]\nallow_slower = false\n')
    )
    assert spelt_out.digest() == Recipe().digest()
    assert Recipe(seed=1).digest() != Recipe().digest()


@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=5) | st.none(), max_size=3))
def test_options_of_any_kind_are_read_or_refused(tree: dict[str, Any]) -> None:
    try:
        recipe = load_recipe(overrides=tree)
    except UsageError as error:
        refused = str(error)
    else:
        refused = "--"
        assert load_recipe(overrides=tree).digest() == recipe.digest()
    assert refused.startswith(("options: unknown key", "--"))
