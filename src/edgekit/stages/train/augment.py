"""Random changes of training inputs that do not change what they are: images are shifted and mirrored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import UsageError
from edgekit.evaluate import Agreement, has_classes
from edgekit.usercode import imported
from edgekit_converters.program import TensorInfo

Array = NDArray[Any]
Augment = Callable[[tuple[Array, ...], np.random.Generator], tuple[Array, ...]]
Run = Callable[[tuple[Array, ...]], tuple[Array, ...]]

# Largest shift as a share of the side: 4 pixels of 32, as is usual for CIFAR-10 (He et al. 2016, section 4.2).
_SHIFT: Final = 1 / 8
# The mirror image is taken for the same when so many more answers change, at most, than by a shift.
_TOLERANCE: Final = 0.02
_TAKES: Final = "a function of (batch, numpy generator) that gives a batch"
_CHANNELS: Final = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Moves:
    """What is done to images.

    Attributes:
        axes: height and width of each input; None for what is no image.
        flip: half of them are mirrored.
        shift: they are moved by up to an eighth of the side; what comes in is the mirrored rim.
    """

    axes: tuple[tuple[int, int] | None, ...]
    flip: bool
    shift: bool

    def __call__(self, inputs: tuple[Array, ...], random: np.random.Generator) -> tuple[Array, ...]:
        """Change a batch; all images of a sample move together.

        Args:
            inputs: one array per input.
            random: everything is drawn from it.
        """
        n = len(inputs[0])
        places = random.random((n, 2)) * 2 - 1 if self.shift else np.zeros((n, 2))
        mirrored = random.random(n) < 0.5 if self.flip else np.zeros(n, bool)
        return tuple(
            x if axes is None else _moved(x, axes, places, mirrored)
            for x, axes in zip(inputs, self.axes, strict=True)
        )


def _moved(x: Array, axes: tuple[int, int], places: Array, mirrored: Array) -> Array:
    """Each image cut from its reflected surroundings.

    Args:
        x: batch of images.
        axes: of height and width.
        places: `[n, 2]`, from −1 to 1, shares of the largest shift.
        mirrored: `[n]`, which are turned around.
    """
    rims = [int(x.shape[axis] * _SHIFT) for axis in axes]
    widths = [(0, 0)] * x.ndim
    for axis, rim in zip(axes, rims, strict=True):
        widths[axis] = (rim, rim)
    wide = np.pad(x, widths, mode="reflect")
    starts = np.rint((places + 1) * np.array(rims)).astype(int)
    moved = np.empty_like(x)
    for i, (top, left) in enumerate(starts):
        cut: list[Any] = [slice(None)] * (x.ndim - 1)
        cut[axes[0] - 1] = slice(top, top + x.shape[axes[0]])
        cut[axes[1] - 1] = slice(left, left + x.shape[axes[1]])
        image = wide[i][tuple(cut)]
        moved[i] = np.flip(image, axes[1] - 1) if mirrored[i] else image
    return moved


def image_axes(info: TensorInfo) -> tuple[int, int] | None:
    """Axes of height and width, None where the input is no image."""
    if len(info.shape) != 4 or not info.dtype.startswith("float"):
        return None
    axes = (1, 2) if info.shape[3] in _CHANNELS and info.shape[1] not in _CHANNELS else (2, 3)
    return axes if min(info.shape[axis] for axis in axes) > 1 else None


def augmentation(
    wish: str,
    inputs: Sequence[TensorInfo],
    samples: tuple[Array, ...],
    run: Run,
    *,
    free: bool,
) -> tuple[Augment | None, tuple[str, ...]]:
    """Choose what is done to training inputs.

    Args:
        wish: `augment` of the recipe.
        inputs: of the network.
        samples: some inputs, to see what the original network makes of their mirror images.
        run: the original network.
        free: what is learned from moves with the input: labels are class numbers of whole inputs, or there are none.

    Returns:
        The change, None for no change, and notes for the report.

    Raises:
        UsageError: the wish cannot be granted.
    """
    if wish == "none":
        return None, ()
    if ":" in wish:
        function = imported(
            wish,
            named=f"recipe: train.augment = {wish!r}",
            expected=_TAKES,
            way_out="Run in the folder of the module, or install it; and check the spelling.",
        )
        return partial(_by_user, function, wish, tuple(inputs)), ()
    axes = tuple(image_axes(info) for info in inputs)
    images = any(axes)
    if wish == "auto":
        return _chosen(axes, samples, run) if images and free else (None, ())
    if not images or not free:
        found = ", ".join(f"{i.name} {i.shape}" for i in inputs)
        raise UsageError(
            f'recipe: train.augment = "{wish}" for {found if not images else "labels that move with the image"}',
            expected="an input of images [n, channels, height, width], and labels that are one class each",
            way_out='Set augment = "none" in [train] of the recipe, or name a function of your own.',
        )
    kinds = wish.split(",")
    return Moves(axes, "flip" in kinds, "shift" in kinds), ()


def _chosen(
    axes: tuple[tuple[int, int] | None, ...], samples: tuple[Array, ...], run: Run
) -> tuple[Augment, tuple[str, ...]]:
    """Shift; and flip where the original network takes mirror images for the same."""
    plain = run(samples)
    if any(y.ndim == 4 for y in plain) or not all(has_classes(y) for y in plain):
        return Moves(axes, flip=False, shift=True), ("training images were shifted",)
    n = len(samples[0])
    corners = np.stack(
        [np.where(np.arange(n) % 2, 1.0, -1.0), np.where(np.arange(n) // 2 % 2, 1.0, -1.0)], axis=1
    )
    shifted = _agreement(plain, run(_all_moved(samples, axes, corners, np.zeros(n, bool))))
    mirrored = _agreement(plain, run(_all_moved(samples, axes, np.zeros((n, 2)), np.ones(n, bool))))
    flip = mirrored >= shifted - _TOLERANCE
    said = (
        f"training images were shifted{' and mirrored' if flip else ''}: the original network gives "
        f"{mirrored:.1%} of its answers to mirror images, too, and {shifted:.1%} to shifted ones"
    )
    return Moves(axes, flip=flip, shift=True), (said,)


def _all_moved(
    samples: tuple[Array, ...], axes: tuple[tuple[int, int] | None, ...], places: Array, mirrored: Array
) -> tuple[Array, ...]:
    return tuple(
        x if at is None else _moved(x, at, places, mirrored) for x, at in zip(samples, axes, strict=True)
    )


def _agreement(plain: tuple[Array, ...], changed: tuple[Array, ...]) -> float:
    tally = Agreement()
    tally.add(changed, None, plain)
    return tally.value()


def _by_user(
    function: Callable[..., Any],
    name: str,
    inputs: tuple[TensorInfo, ...],
    arrays: tuple[Array, ...],
    random: np.random.Generator,
) -> tuple[Array, ...]:
    """The user's function: one array for a network of one input, else a tuple of arrays; and the same back."""
    try:
        given = function(arrays[0] if len(arrays) == 1 else arrays, random)
        changed = tuple(np.asarray(a) for a in (given if isinstance(given, (tuple, list)) else (given,)))
    except Exception as error:  # the user's code may raise anything
        raise UsageError(
            f"recipe: train.augment = {name!r} raised {type(error).__name__}: {error}",
            expected=_TAKES,
            way_out="Run it by itself and mend it.",
        ) from error
    if [a.shape for a in changed] != [a.shape for a in arrays]:
        raise UsageError(
            f"recipe: train.augment = {name!r} gave {', '.join(str(a.shape) for a in changed)}",
            expected=f"{', '.join(str(a.shape) for a in arrays)}: the shapes that it was given",
            way_out="Return a batch of the same shape for every input.",
        )
    return tuple(a.astype(info.dtype, copy=False) for a, info in zip(changed, inputs, strict=True))
