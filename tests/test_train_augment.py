"""Images move by random numbers alone, and only where what they are does not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit.errors import UsageError
from edgekit.stages.train.augment import Moves, augmentation, image_axes
from edgekit_converters.program import TensorInfo

IMAGE = (TensorInfo("x", (1, 3, 16, 16), "float32"),)
AXES = ((2, 3),)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def classes_by(weights):
    """A network `[n, 3, 16, 16]` to `[n, 4]` of one linear layer."""

    def run(inputs):
        return (inputs[0].reshape(len(inputs[0]), -1) @ weights,)

    return run


def anything(inputs):
    return (inputs[0].reshape(len(inputs[0]), -1)[:, :4],)


@given(arrays(np.float32, (5, 2, 8, 8), elements=st.floats(-9, 9, width=32)), st.integers(0, 99))
def test_moved_images_hold_no_value_that_was_not_there(x, seed):
    (moved,) = Moves(AXES, flip=True, shift=True)((x,), np.random.default_rng(seed))
    assert (moved.shape, moved.dtype) == (x.shape, x.dtype)
    for before, after in zip(x, moved, strict=True):
        for channel in range(2):
            assert np.isin(after[channel], before[channel]).all()


def test_the_same_random_numbers_move_the_same_way_and_leave_the_batch_alone():
    x = drawn(6, 3, 16, 16)
    before = x.copy()
    first, second, other = (
        Moves(AXES, flip=True, shift=True)((x,), np.random.default_rng([0, 1, seed]))[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert np.array_equal(x, before)


def test_a_flip_mirrors_left_and_right_of_about_half():
    x = drawn(64, 3, 16, 16)
    (moved,) = Moves(AXES, flip=True, shift=False)((x,), np.random.default_rng(0))
    same = (moved == x).all(axis=(1, 2, 3))
    mirrored = (moved == x[..., ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 20 < mirrored.sum() < 44


def test_a_shift_is_at_most_an_eighth_of_the_side_and_reaches_it():
    ramp = np.broadcast_to(np.arange(16.0, dtype=np.float32), (400, 1, 16, 16)).copy()
    (moved,) = Moves(AXES, flip=False, shift=True)((ramp,), np.random.default_rng(0))
    shifts = moved[:, 0, 0, 8] - 8
    assert (shifts.min(), shifts.max()) == (-2, 2)
    down = Moves(AXES, flip=False, shift=True)(
        (ramp.transpose(0, 1, 3, 2).copy(),), np.random.default_rng(0)
    )[0]
    assert set(down[:, 0, 8, 0] - 8) == {-2.0, -1.0, 0.0, 1.0, 2.0}


def test_channels_may_come_last_and_images_of_a_sample_move_together():
    x = drawn(8, 3, 16, 16)
    both = Moves(((2, 3), None, (1, 2)), flip=True, shift=True)
    first, meta, last = both((x, x[:, :, 0, 0], x.transpose(0, 2, 3, 1)), np.random.default_rng(3))
    assert np.array_equal(first, last.transpose(0, 3, 1, 2))
    assert np.array_equal(meta, x[:, :, 0, 0])


def test_images_of_a_pixel_or_less_than_a_rim_are_left_as_they_are():
    assert image_axes(TensorInfo("x", (1, 8, 1, 1), "float32")) is None
    x = drawn(3, 1, 4, 4)
    assert np.array_equal(Moves(AXES, flip=False, shift=True)((x,), np.random.default_rng(0))[0], x)


@pytest.mark.parametrize(
    ("shape", "dtype", "axes"),
    [
        ((1, 3, 8, 8), "float32", (2, 3)),
        ((1, 8, 8, 3), "float32", (1, 2)),
        ((1, 64, 8, 3), "float32", (1, 2)),
        ((1, 1, 49, 10), "float32", (2, 3)),
        ((1, 3, 8, 8), "int64", None),
        ((1, 100), "float32", None),
        ((1, 3, 8, 8, 8), "float32", None),
    ],
)
def test_images_are_recognised(shape, dtype, axes):
    assert image_axes(TensorInfo("x", shape, dtype)) == axes


def test_mirror_images_are_trained_on_where_the_network_takes_them_for_the_same():
    means = np.repeat(np.eye(3, 4, dtype=np.float32), 256, axis=0)
    augment, notes = augmentation("auto", IMAGE, (drawn(64, 3, 16, 16),), classes_by(means), free=True)
    assert augment == Moves(AXES, flip=True, shift=True)
    assert "shifted and mirrored" in notes[0]


def test_mirror_images_are_not_trained_on_where_they_are_something_else():
    weights = np.zeros((3, 16, 16, 4), np.float32)
    weights[:, :, :8, 0] = weights[:, :, 8:, 1] = 1
    x = drawn(64, 3, 16, 16)
    x[::2, :, :, :8] += 1
    x[1::2, :, :, 8:] += 1
    augment, notes = augmentation("auto", IMAGE, (x,), classes_by(weights.reshape(-1, 4)), free=True)
    assert augment == Moves(AXES, flip=False, shift=True)
    assert "mirrored:" not in notes[0]


def test_pictures_for_answers_and_values_are_never_mirrored():
    for run in (lambda x: x, lambda x: (x[0].mean(axis=(1, 2, 3))[:, None],)):
        augment, _ = augmentation("auto", IMAGE, (drawn(4, 3, 16, 16),), run, free=True)
        assert augment == Moves(AXES, flip=False, shift=True)


def test_nothing_moves_unasked_where_labels_would_have_to_move_too():
    assert augmentation("auto", IMAGE, (drawn(4, 3, 16, 16),), anything, free=False) == (None, ())
    with pytest.raises(UsageError, match="labels that move with the image"):
        augmentation("flip,shift", IMAGE, (drawn(4, 3, 16, 16),), anything, free=False)


def test_what_is_no_image_stays_and_cannot_be_flipped():
    flat = (TensorInfo("x", (1, 9), "float32"),)
    assert augmentation("auto", flat, (drawn(4, 9),), anything, free=True) == (None, ())
    with pytest.raises(UsageError, match="x \\(1, 9\\)"):
        augmentation("shift", flat, (drawn(4, 9),), anything, free=True)


def test_moves_can_be_named_or_left_out():
    samples = (drawn(4, 3, 16, 16),)
    assert augmentation("none", IMAGE, samples, anything, free=True) == (None, ())
    assert augmentation("flip", IMAGE, samples, anything, free=True)[0] == Moves(AXES, flip=True, shift=False)
    assert augmentation("shift", IMAGE, samples, anything, free=True)[0] == Moves(
        AXES, flip=False, shift=True
    )


def louder(x, random):
    return x * random.uniform(2, 3)


def cut(x, random):
    return x[:, :, :4]


def broken(x, random):
    raise KeyError("volume")


def test_a_function_of_the_user_changes_batches():
    augment, _ = augmentation(f"{__name__}:louder", IMAGE, (), anything, free=False)
    x = drawn(2, 3, 16, 16)
    (changed,) = augment((x,), np.random.default_rng(0))
    assert changed.dtype == np.float32
    assert (changed / x >= 2).all()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut", r"gave \(2, 3, 4, 16\)"),
        ("broken", "raised KeyError: 'volume'"),
        ("none_such", "has no attribute"),
    ],
)
def test_a_function_of_the_user_that_does_not_do_is_named(name, words):
    with pytest.raises(UsageError, match=words):
        augmentation(f"{__name__}:{name}", IMAGE, (), anything, free=True)[0]((drawn(2, 3, 16, 16),), None)
