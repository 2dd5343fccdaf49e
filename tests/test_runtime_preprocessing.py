"""Pixels become inputs on a device as they did where the model was evaluated: the same bits, without Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekit.data.preprocessing import FILTERS as REFERENCE_FILTERS
from edgekit.data.preprocessing import Preprocessing as Reference
from edgekit_runtime.errors import ArtifactError, InputError
from edgekit_runtime.postprocessing import softmax, top
from edgekit_runtime.preprocessing import Preprocessing
from edgekit_runtime.resample import FILTERS, NEAREST, resize

SIDES = st.integers(1, 40)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Pixels with many at the ends, where filters overshoot."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-200, 456, (height, width, channels))
    return values.clip(0, 255).astype(np.uint8)


def test_there_is_a_filter_for_each_of_the_reference() -> None:
    assert {NEAREST, *FILTERS} == set(REFERENCE_FILTERS)


@pytest.mark.parametrize("name", [NEAREST, *FILTERS])
@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 9))
def test_every_pixel_is_the_reference_s(
    name: str, h: int, w: int, height: int, width: int, seed: int
) -> None:
    pixels = noise(h, w, seed=seed)
    wanted = Image.fromarray(pixels).resize((width, height), getattr(Image.Resampling, name.upper()))
    np.testing.assert_array_equal(resize(pixels, height, width, name), np.asarray(wanted))


@pytest.mark.parametrize("name", [NEAREST, *FILTERS])
@pytest.mark.parametrize(
    ("h", "w", "height", "width"), [(480, 640, 224, 224), (37, 1001, 99, 31), (1, 1, 64, 64), (500, 3, 1, 1)]
)
def test_large_and_thin_images_too(name: str, h: int, w: int, height: int, width: int) -> None:
    pixels = noise(h, w)
    wanted = Image.fromarray(pixels).resize((width, height), getattr(Image.Resampling, name.upper()))
    np.testing.assert_array_equal(resize(pixels, height, width, name), np.asarray(wanted))


RECIPES: list[dict[str, Any]] = [
    {},
    {"resize": 32, "crop": 24, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"resize": [20, 30], "layout": "NHWC", "filter": "bicubic"},
    {"resize": [24], "color": "BGR", "scale": 1.0, "mean": [127.0], "std": [128.0]},
    {"resize": 17, "crop": [9, 11], "color": "GRAY", "mean": [0.5], "std": [0.5], "filter": "lanczos"},
    {"crop": 8, "color": "GRAY", "layout": "NHWC", "filter": "nearest"},
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (33, 33), (25, 90)])
def test_an_image_becomes_the_input_that_the_model_was_evaluated_on(
    recipe: dict[str, Any], shape: tuple[int, int], tmp_path: Path
) -> None:
    pixels = noise(*shape)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    reference = Reference.from_dict(recipe)
    wanted = reference.normalize(reference.open_image(str(tmp_path / "image.png"))[None], channels_last=True)
    made = Preprocessing.from_manifest(reference.to_dict())
    assert made is not None
    found = made(pixels)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("recipe", RECIPES[:4])
def test_a_gray_image_is_shown_to_a_model_of_colours_as_the_reference_shows_it(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    pixels = noise(40, 50, 1)[..., 0]
    Image.fromarray(pixels).save(tmp_path / "image.png")
    reference = Reference.from_dict(recipe)
    wanted = reference.normalize(reference.open_image(str(tmp_path / "image.png"))[None], channels_last=True)
    made = Preprocessing.from_manifest(reference.to_dict())
    assert made is not None
    for each in (pixels, pixels[..., None]):
        np.testing.assert_array_equal(made(each), wanted)


def test_a_whole_number_larger_than_any_of_numpy_is_a_number() -> None:
    made = Preprocessing.from_manifest({"scale": 2**70, "mean": [2**70]})
    assert made is not None
    assert (made.scale, made.mean) == (2.0**70, (2.0**70,))


def test_without_a_recipe_there_is_no_preprocessing() -> None:
    assert Preprocessing.from_manifest({}) is None


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"rotate": 90}, "rotate"),
        ({"resize": 0}, "resize"),
        ({"resize": 10**9}, "resize"),
        ({"resize": [1, 2, 3]}, "resize"),
        ({"resize": True}, "resize"),
        ({"crop": "large"}, "crop"),
        ({"color": "CMYK"}, "color"),
        ({"color": ["RGB"]}, "color"),
        ({"layout": "CHWN"}, "layout"),
        ({"filter": "box"}, "filter"),
        ({"scale": 0}, "scale"),
        ({"scale": "1/255"}, "scale"),
        ({"mean": [0.1, 0.2]}, "mean"),
        ({"mean": [float("inf")]}, "mean"),
        ({"mean": [10**400]}, "mean"),
        ({"scale": 10**400}, "scale"),
        ({"scale": 1e39}, "scale"),
        ({"scale": 1e-60}, "scale"),
        ({"std": [0.0]}, "std"),
        ({"std": [1e-60]}, "std"),
        ({"std": [1.0, 1.0], "color": "GRAY"}, "std"),
        ({"mean": {}}, "mean"),
    ],
)
def test_a_recipe_that_this_version_cannot_follow_is_refused_by_its_key(
    table: dict[str, Any], key: str
) -> None:
    with pytest.raises(ArtifactError, match=f"preprocessing: {key}") as caught:
        Preprocessing.from_manifest(table)
    assert caught.value.code == "preprocessing"


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8), None,
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused(pixels: Any) -> None:
    with pytest.raises(InputError, match="pixels of"):
        Preprocessing()(pixels)


def test_probabilities_add_up_whatever_the_scores() -> None:
    for scores in ([1.0, 2.0, 3.0], [1e30, 0.0, -1e30], [[0.0, 0.0], [5.0, -5.0]]):
        found = softmax(np.array(scores))
        np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-6)
        assert (np.argmax(found, -1) == np.argmax(scores, -1)).all()


def test_the_largest_scores_come_first_by_their_names_and_nan_last() -> None:
    assert top(np.array([0.1, 0.7, 0.2]), ("a", "b", "c"), 2) == [("b", 0.7), ("c", 0.2)]
    assert top(np.array([1.0, 1.0]), (), 5) == [("0", 1.0), ("1", 1.0)]
    assert [name for name, _ in top(np.array([np.nan, 1.0]), ("a", "b"))] == ["b", "a"]
    assert top(np.array([1.0]), (), 0) == []


def test_an_image_that_is_smaller_than_what_is_cut_out_is_refused() -> None:
    with pytest.raises(InputError, match="at least 24x24"):
        Preprocessing(crop=24)(noise(23, 30))
