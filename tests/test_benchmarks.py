"""The instruments that judge edgekit must be right themselves."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

# pytest puts tests/ on the path, not the root of the checkout where benchmarks/ lies.
sys.path.append(str(Path(__file__).parents[1]))

from benchmarks import data_cifar10, data_photos
from benchmarks.measure import interleaved, latency, quality, ratio
from benchmarks.networks import MissingDataError, resnet20


def test_quality_counts_labels_agreement_and_noise():
    reference = np.eye(4, dtype=np.float32)
    outputs = reference.copy()
    outputs[3] = (0.0, 0.0, 1.0, 0.0)
    figures = quality(outputs, reference, np.array([0, 1, 2, 2]))
    assert figures["agreement"] == 75.0
    assert figures["top1"] == 100.0
    assert figures["snr_db"] == pytest.approx(10 * np.log10(4 / 2), abs=0.01)
    assert "top1" not in quality(outputs, reference)


def test_interleaved_times_tell_a_slow_call_from_a_quick_one():
    times = interleaved(
        {"quick": lambda: time.sleep(0.0005), "slow": lambda: time.sleep(0.003)}, rounds=8, sample_ms=1.0
    )
    assert ratio(times["slow"], times["quick"]) > 2
    assert latency(times["slow"])["p50"] >= 3.0
    assert len(times["quick"]) == 8


def test_photographs_come_with_their_packages_and_none_does_both():
    assert all(photo.is_file() for photo in (*data_photos.CALIBRATION, *data_photos.EVALUATION))
    assert not set(data_photos.CALIBRATION) & set(data_photos.EVALUATION)


def test_a_missing_checkpoint_says_where_it_belongs(tmp_path: Path):
    with pytest.raises(MissingDataError, match="resnet20"):
        resnet20(tmp_path / "resnet20_cifar10.th")


def test_an_image_batch_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="expected uint8"):
        data_cifar10.Cifar10(np.zeros((2, 32, 32, 3), np.uint8), np.zeros(2, np.int64))
