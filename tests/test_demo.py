"""The demonstration: its data, its training, and one whole run."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import demo, demo_digits, demo_photos
from examples.photos import crops
from PIL import Image
from rich.console import Console

from edgekit.bundle import Bundle


def test_digits_that_judge_are_not_among_those_that_train() -> None:
    data = demo_digits.data()
    rows = {name: {image.tobytes() for image in data[name]} for name in ("train_x", "eval_x")}

    assert len(data["eval_x"]) == len(data["eval_y"]) == demo_digits.EVALUATED
    assert not rows["train_x"] & rows["eval_x"]
    assert data["train_x"].dtype == np.float32
    assert 0 <= data["train_x"].min() < data["train_x"].max() <= 1


def test_training_learns_and_repeats() -> None:
    data = demo_digits.data()
    models = [demo_digits.train(data["train_x"], data["train_y"], epochs=2) for _ in range(2)]
    with torch.no_grad():
        first, second = (model(torch.from_numpy(data["eval_x"])) for model in models)

    assert torch.equal(first, second)
    assert (first.argmax(1).numpy() == data["eval_y"]).mean() > 0.9


def test_training_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()

    demo_digits.train(np.zeros((4, 1, 8, 8), np.float32), np.zeros(4, np.int64), epochs=1)

    assert torch.equal(before, torch.random.get_rng_state())


def test_photographs_come_with_their_packages_and_none_does_both() -> None:
    photos = (*demo_photos.CALIBRATION, *demo_photos.EVALUATION)

    assert all(photo.is_file() for photo in photos)
    assert len({photo.name for photo in photos}) == len(photos)


def test_crops_are_normalised_and_repeat(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    gradient = np.linspace(0, 255, 60 * 80 * 3).reshape(60, 80, 3).astype(np.uint8)
    Image.fromarray(gradient).save(file)

    first, again, other = (crops([file], 6, seed=seed, side=16) for seed in (3, 3, 4))

    assert first.shape == (6, 3, 16, 16)
    assert first.dtype == np.float32
    assert -127 / 128 <= first.min() < first.max() <= 1
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_crops_without_any_are_an_empty_batch(tmp_path: Path) -> None:
    assert crops([], 0, seed=0, side=16).shape == (0, 3, 16, 16)


def test_an_unknown_case_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.main(["digts"])

    assert stopped.value.code == 2
    assert "unknown case digts: expected digits, efficientnet-lite0" in capsys.readouterr().err


@pytest.mark.slow
def test_digits_are_compressed_proven_and_reported(tmp_path: Path) -> None:
    console = Console(record=True, width=120, file=io.StringIO())

    assert demo.compress(demo.CASES["digits"], tmp_path / "digits", console)

    bundle = Bundle.open(tmp_path / "digits")
    shown = console.export_text()
    assert set(bundle.report["artifacts"]) == {"onnx", "tflite", "coreml"}
    assert all(a["proof"]["holds"] and a["drop"] <= 0.01 for a in bundle.report["artifacts"].values())
    assert str(tmp_path / "digits" / "report.html") in shown
