"""Samples become the spectrogram that a model was trained on, by the numbers in its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import UsageError
from edgekit.intake import open_inputs
from edgekit.recipe import Recipe
from edgekit_runtime import Model
from edgekit_runtime.errors import ArtifactError, InputError
from edgekit_runtime.sound import Sound
from support.colours import SIDE, colours, write_bundle

SMALL = Sound(rate=8000, window=64, hop=32, frames=8, bands=8, fft=64, lowest_hz=100, highest_hz=4000)


def by_definition(sound: Sound, samples: Any) -> Any:
    """One frame, one bin and one band after the other."""
    stretch = np.zeros(sound.length)
    before = (sound.length - len(samples)) // 2
    stretch[before : before + len(samples)] = samples
    to_mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)  # noqa: E731 - as the formula is written
    edges = [
        700 * (10 ** (m / 2595) - 1)
        for m in np.linspace(to_mel(sound.lowest_hz), to_mel(sound.highest_hz), sound.bands + 2)
    ]
    energy = np.zeros((sound.frames, sound.bands))
    for frame in range(sound.frames):
        cut = stretch[frame * sound.hop : frame * sound.hop + sound.window]
        cut = cut * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(sound.window) / (sound.window - 1)))
        for k in range(sound.fft // 2 + 1):
            hertz = k * sound.rate / sound.fft
            power = abs(np.sum(cut * np.exp(-2j * np.pi * k * np.arange(sound.window) / sound.fft))) ** 2
            for band in range(sound.bands):
                low, middle, high = edges[band : band + 3]
                weight = min((hertz - low) / (middle - low), (high - hertz) / (high - middle))
                energy[frame, band] += max(0.0, weight) * power
    decibels = 10 * np.log10(np.maximum(energy / energy.max(), 10 ** (sound.floor_db / 10)))
    return (1 - 2 * decibels / sound.floor_db)[None]


def test_a_spectrogram_is_what_its_definition_says() -> None:
    samples = np.random.default_rng(0).normal(size=200).astype(np.float32)
    np.testing.assert_allclose(SMALL.log_mel(samples), by_definition(SMALL, samples), atol=1e-4)


@given(st.integers(1, 3000), st.floats(0.001, 1.0))
def test_any_recording_becomes_one_input_between_minus_one_and_one(n: int, loudness: float) -> None:
    samples = (loudness * np.sin(np.arange(n) * 0.7)).astype(np.float32)
    made = SMALL(samples)
    assert (made.shape, made.dtype) == ((1, 1, 8, 8), np.float32)
    assert made.min() >= -1
    assert made.max() <= 1


def test_integers_from_a_sound_card_are_what_they_stand_for() -> None:
    whole = (20000 * np.sin(np.arange(300) * 0.4)).astype(np.int16)
    assert np.array_equal(SMALL(whole), SMALL(whole.astype(np.float32) / np.float32(32768)))


def test_silence_is_the_floor() -> None:
    assert (SMALL(np.zeros(100, np.int16)) == -1).all()


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(0, np.float32), np.zeros((2, 100), np.float32), np.zeros(100, np.float64), np.zeros(100, np.uint8),
        np.array([0.0, np.nan], np.float32), np.array([np.inf], np.float32),
    ],
)  # fmt: skip
def test_what_is_no_recording_is_refused(samples: Any) -> None:
    with pytest.raises(InputError) as caught:
        SMALL(samples)
    assert caught.value.code == "input"


WRONG = [
    ("rate", 0), ("rate", 44100.0), ("window", True), ("hop", -1), ("frames", 10**9), ("bands", "many"), ("fft", 399),
    ("highest_hz", 9000.0), ("highest_hz", 10.0), ("lowest_hz", float("nan")), ("floor_db", 0.0), ("surplus", 1),
    ("frames", 65536), ("floor_db", -301.0),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_number_that_makes_no_sense_is_named(key: str, value: Any) -> None:
    with pytest.raises(ArtifactError, match=f"preprocessing.sound: {key}") as caught:
        Sound.from_manifest({key: value, **({"window": 65536, "fft": 65536} if value == 65536 else {})})
    assert caught.value.code == "preprocessing"


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"frames": 65536, "window": 64, "hop": 1, "fft": 65536, "bands": 40}, "frames"),
        ({"frames": 4, "fft": 65536, "bands": 65536}, "fft"),
        ({"frames": 65536, "window": 64, "hop": 1, "fft": 64, "bands": 65536}, "frames"),
    ],
)
def test_a_recipe_for_more_memory_than_a_device_has_is_refused(table: dict[str, int], key: str) -> None:
    with pytest.raises(ArtifactError, match=f"preprocessing.sound: {key}"):
        Sound.from_manifest(table)


def test_the_workbench_refuses_it_too_and_takes_arrays_as_they_are_else() -> None:
    with pytest.raises(UsageError, match="fft = 1"):
        open_inputs(None, Recipe(preprocessing={"sound": {"fft": 1}}), _candidate(), None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="sound"):
        open_inputs(None, Recipe(preprocessing={"sound": {}, "crop": 3}), _candidate(), None)  # type: ignore[arg-type]


def _candidate() -> Any:
    import torch

    from edgekit.load import load_candidate

    return load_candidate(torch.nn.Conv2d(1, 2, 3), input_shapes=[(1, 1, 8, 8)])


def test_a_bundle_takes_samples(tmp_path: Path) -> None:
    sound = {"rate": 8000, "window": 64, "hop": 32, "frames": SIDE, "bands": SIDE, "fft": 64,
             "lowest_hz": 100, "highest_hz": 4000}  # fmt: skip
    folder = write_bundle(colours(), tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["preprocessing"] = {"sound": sound}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    model = Model.load(folder)
    assert model.info.preprocessing == Sound.from_manifest(sound)
    # The model takes three channels; what is prepared has one, and says so.
    assert model.prepare(np.zeros(100, np.int16)).shape == (1, 1, SIDE, SIDE)
    manifest["preprocessing"]["crop"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="either a table"):
        Model.load(folder)
