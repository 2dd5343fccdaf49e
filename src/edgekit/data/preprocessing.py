"""From raw images to model inputs, as a recipe that travels with the model to the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from edgekit.errors import UsageError

COLORS = ("RGB", "BGR", "GRAY")
LAYOUTS = ("NCHW", "NHWC")
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """`(pixel * scale - mean) / std`, after geometry.

    Attributes:
        resize: (height, width) exactly, or one number for the shorter side; None keeps the size.
        crop: (height, width) from the centre, or one number for both; None keeps all.
        color: order of the channels that the model expects.
        layout: of the model's input.
        scale: multiplies the pixels, which are 0…255.
        mean: per channel, in the units after `scale`.
        std: per channel.
        filter: of the resize.
    """

    resize: tuple[int, int] | int | None = None
    crop: tuple[int, int] | int | None = None
    color: str = "RGB"
    layout: str = "NCHW"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        for name, allowed in (("color", COLORS), ("layout", LAYOUTS), ("filter", FILTERS)):
            if getattr(self, name) not in allowed:
                raise _wrong(name, getattr(self, name), f"one of {', '.join(allowed)}")
        for name in ("resize", "crop"):
            value = getattr(self, name)
            sizes = value if isinstance(value, tuple) else (value,)
            if value is not None and (len(sizes) > 2 or not all(isinstance(s, int) and s > 0 for s in sizes)):
                raise _wrong(name, value, "one positive number, or [height, width]")
        if not np.isfinite(self.scale) or self.scale <= 0:
            raise _wrong("scale", self.scale, "a positive number, e.g. 0.00392156862745098 for 1/255")
        channels = 1 if self.color == "GRAY" else 3
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) not in (1, channels) or not np.isfinite(value).all():
                raise _wrong(name, list(value), f"1 or {channels} finite numbers")
        if min(self.std) <= 0:
            raise _wrong("std", list(self.std), "positive numbers")

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Preprocessing:
        """Read the `[preprocessing]` table of a recipe.

        Raises:
            UsageError: an unknown key or a value that does not fit; the message names it.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise _wrong(unknown[0], table[unknown[0]], f"a key among {', '.join(known)}")
        values: dict[str, Any] = {}
        for key, value in table.items():
            single = key in ("mean", "std") and isinstance(value, (int, float))
            values[key] = (float(value),) if single else tuple(value) if isinstance(value, list) else value
        try:
            return cls(**values)
        except TypeError as error:
            raise _wrong("preprocessing", dict(table), f"values of the right type ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @property
    def channels(self) -> int:
        """Number of colour channels of the input."""
        return 1 if self.color == "GRAY" else 3

    def normalize(self, images: np.ndarray, *, channels_last: bool) -> np.ndarray:
        """Scale and normalise a batch, and bring it to the model's layout.

        Args:
            images: (n, h, w, c) or (n, c, h, w), any number type.
            channels_last: which of the two.

        Returns:
            float32 in `layout`.
        """
        axis = -1 if channels_last else 1
        shape = [1] * images.ndim
        shape[axis] = -1
        mean = np.asarray(self.mean, np.float32).reshape(shape)
        std = np.asarray(self.std, np.float32).reshape(shape)
        # A deviation near 0 leaves float32; `check_batch` then names the sample, which a warning would not.
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            values = (images.astype(np.float32) * np.float32(self.scale) - mean) / std
        wants_last = self.layout == "NHWC"
        if channels_last and not wants_last:
            values = values.transpose(0, 3, 1, 2)
        elif wants_last and not channels_last:
            values = values.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(values, dtype=np.float32)

    def open_image(self, path: str) -> np.ndarray:
        """Read, turn upright, resize and crop one image.

        Returns:
            uint8 (height, width, channels) in `color` order.
        """
        from PIL import Image, ImageOps

        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("L" if self.color == "GRAY" else "RGB")
        if self.resize is not None:
            image = image.resize(self._resized(image.size), getattr(Image.Resampling, self.filter.upper()))
        if self.crop is not None:
            height, width = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
            left, top = (image.width - width) // 2, (image.height - height) // 2
            image = image.crop((left, top, left + width, top + height))
        pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, self.channels)
        return pixels[..., ::-1] if self.color == "BGR" else pixels

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) after the resize of an image of `size` (width, height)."""
        if isinstance(self.resize, tuple):
            return self.resize[-1], self.resize[0]
        assert self.resize is not None
        factor = self.resize / min(size)
        return max(round(size[0] * factor), self.resize), max(round(size[1] * factor), self.resize)


def _wrong(key: str, value: object, expected: str) -> UsageError:
    return UsageError(
        f"preprocessing: {key} = {value!r}",
        expected=expected,
        way_out="Correct it in the [preprocessing] table of the recipe.",
    )


def default_for(shape: tuple[int, ...]) -> tuple[Preprocessing, str]:
    """What most image classifiers expect, for a folder of images without a recipe.

    Args:
        shape: of the model's input at batch one.

    Returns:
        The preprocessing and the note that says what was assumed.

    Raises:
        UsageError: the input is not an image.
    """
    layout = next((name for name, axis in (("NCHW", 1), ("NHWC", -1)) if shape[axis] in (1, 3)), None)
    if len(shape) != 4 or layout is None:
        raise UsageError(
            f"the model's input has the shape {shape}",
            expected="an image with 1 or 3 channels, for a folder of images",
            way_out="Pass the inputs as an .npz, or as module:callable.",
        )
    height, width = shape[2:] if layout == "NCHW" else shape[1:3]
    plain = Preprocessing(resize=(height, width), layout=layout)
    if shape[1 if layout == "NCHW" else -1] == 1:
        return replace(plain, color="GRAY"), (
            f"images were resized to {height}x{width} and scaled to 0…1, which is an assumption; "
            "state the training's own in [preprocessing]"
        )
    return replace(plain, mean=IMAGENET_MEAN, std=IMAGENET_STD), (
        f"images were resized to {height}x{width} and normalised by the ImageNet mean and deviation, which "
        f"is an "
        "assumption; state the training's own in [preprocessing]"
    )
