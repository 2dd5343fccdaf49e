"""From the pixels that a camera gives to the input of a model, by the recipe in the manifest, with numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.errors import ArtifactError, InputError
from edgekit_runtime.resample import FILTERS, NEAREST, resize
from edgekit_runtime.strict_json import is_real

COLORS: Final = ("RGB", "BGR", "GRAY")
LAYOUTS: Final = ("NCHW", "NHWC")
# No camera and no model needs more; a manifest that asks for it is no recipe but an attack on memory.
MAX_SIDE: Final = 16384
LARGEST: Final = float(np.finfo(np.float32).max)

Pixels = NDArray[np.uint8]
Size = tuple[int, int] | int


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """`(pixel * scale - mean) / std`, after geometry; as in the recipe that the model was evaluated by.

    Attributes:
        resize: (height, width), or one number for the shorter side; None keeps the size.
        crop: (height, width) from the centre, or one number for both; None keeps all.
        color: order of the channels that the model expects.
        layout: of the model's input.
        scale: multiplies the pixels, which are 0…255.
        mean: per channel, in the units after `scale`.
        std: per channel.
        filter: of the resize.
    """

    resize: Size | None = None
    crop: Size | None = None
    color: str = "RGB"
    layout: str = "NCHW"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    filter: str = "bilinear"

    @staticmethod
    def from_manifest(table: Mapping[str, Any]) -> Preprocessing | None:
        """Read `preprocessing` of a manifest; None where there is none.

        Raises:
            ArtifactError: a key that this version does not know, or a value that is none.
        """
        if not table:
            return None
        checks = {
            "resize": _size, "crop": _size, "color": _choice(COLORS), "layout": _choice(LAYOUTS), "scale": _positive,
            "mean": _numbers, "std": _numbers, "filter": _choice((NEAREST, *FILTERS)),
        }  # fmt: skip
        values = {}
        for key, value in table.items():
            if key not in checks:
                raise _wrong(key, value, f"a key among {', '.join(checks)}")
            values[key] = checks[key](key, value)
        made = Preprocessing(**values)
        for key in ("mean", "std"):
            if len(getattr(made, key)) not in (1, made.channels):
                raise _wrong(key, table[key], f"1 or {made.channels} numbers")
        if np.float32(min(made.std)) <= 0:
            raise _wrong("std", table["std"], "positive numbers in float32")
        return made

    @property
    def channels(self) -> int:
        """Of the model's input."""
        return 1 if self.color == "GRAY" else 3

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """Prepare one image.

        Args:
            pixels: uint8 [height, width, 3] in RGB order, or [height, width] or [height, width, 1] in gray.

        Returns:
            float32, one sample with its batch axis, in the layout of the model.

        Raises:
            InputError: no such image.
        """
        image = self._geometry(_colored(pixels, self.color))
        values = image.astype(np.float32)
        # In this order and in float32, as where the model was evaluated.
        values *= np.float32(self.scale)
        values -= np.asarray(self.mean, np.float32)
        values /= np.asarray(self.std, np.float32)
        if self.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values)[None]

    def _geometry(self, image: Pixels) -> Pixels:
        if self.resize is not None:
            image = resize(image, *self._resized(image.shape[0], image.shape[1]), self.filter)
        if self.crop is None:
            return image
        height, width = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
        if height > image.shape[0] or width > image.shape[1]:
            raise InputError(
                f"an image of {image.shape[0]}x{image.shape[1]} pixels",
                expected=f"at least {height}x{width}, which the model is shown",
                way_out="Take larger images, or publish the model with a resize before the crop.",
                code="input",
            )
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if isinstance(self.resize, tuple):
            return self.resize
        assert self.resize is not None
        factor = self.resize / min(height, width)
        return max(round(height * factor), self.resize), max(round(width * factor), self.resize)


def _colored(pixels: Pixels, color: str) -> Pixels:
    array = np.asarray(pixels)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise InputError(
            f"pixels of {array.dtype} {list(np.shape(pixels))}",
            expected="uint8 [height, width, 3] in RGB order, or [height, width] in gray",
            way_out="Decode the image, and turn BGR round with [..., ::-1].",
            code="input",
        )
    if color == "GRAY":
        return _gray(array) if array.shape[-1] == 3 else array
    array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
    return array[..., ::-1] if color == "BGR" else array


def _gray(image: Pixels) -> Pixels:
    """ITU-R 601-2 luma in 16-bit fixed point, as the reference converts."""
    red, green, blue = (image[..., k].astype(np.uint32) for k in range(3))
    luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return luma.astype(np.uint8)[..., None]


def _size(key: str, value: Any) -> Size | None:
    sides = value if isinstance(value, list) else [value]
    if value is None:
        return None
    if not 1 <= len(sides) <= 2 or not all(type(s) is int and 0 < s <= MAX_SIDE for s in sides):
        raise _wrong(key, value, f"one number from 1 to {MAX_SIDE}, or [height, width]")
    return (sides[0], sides[-1]) if isinstance(value, list) else sides[0]


def _numbers(key: str, value: Any) -> tuple[float, ...]:
    items = value if isinstance(value, list) else [value]
    # Pixels are computed in float32, where a larger number is infinite.
    if not all(is_real(x) and abs(x) <= LARGEST for x in items):
        raise _wrong(key, value, "finite numbers in float32")
    return tuple(float(x) for x in items)


def _positive(key: str, value: Any) -> float:
    (number,) = _numbers(key, [value])
    if np.float32(number) <= 0:
        raise _wrong(key, value, "a positive number in float32")
    return number


def _choice(choices: tuple[str, ...]) -> Any:
    def read(key: str, value: Any) -> str:
        if value not in choices:
            raise _wrong(key, value, f"one of {', '.join(choices)}")
        return str(value)

    return read


def _wrong(key: str, value: object, expected: str) -> ArtifactError:
    return ArtifactError(
        f"preprocessing: {key} = {value!r}"[:300],
        expected=expected,
        way_out="Update edgekit-runtime, or correct the recipe and compress again.",
        code="preprocessing",
    )
