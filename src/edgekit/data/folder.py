"""A folder of class folders of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgekit.data.preprocessing import Preprocessing
from edgekit.data.rows import Batch, Rows, Sets
from edgekit.errors import UsageError
from edgekit_converters.program import TensorInfo

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_TRAINING = ("train", "training")
_CALIBRATION = ("calibration", "calib", *_TRAINING)
_EVALUATION = ("evaluation", "eval", "val", "validation", "test")


def open_folder(path: Path, info: TensorInfo, preprocessing: Preprocessing) -> Sets:
    """List a folder; images are read when their batch is asked for, as uint8 NHWC.

    Args:
        path: class folders, or folders like `train` and `val` with class folders in them.
        info: the model's image input.
        preprocessing: its geometry and colours are applied here, its numbers by the caller.

    Raises:
        UsageError: Pillow is missing, or there are no images.
    """
    try:
        import PIL  # noqa: F401 - asked for here, so that the message comes before any work
    except ImportError as error:
        raise UsageError(
            f"{path}: reading images needs Pillow, which is not installed",
            expected="the package pillow",
            way_out="pip install pillow, or pass the inputs as an .npz.",
        ) from error
    parts = {child.name.lower(): child for child in _folders(path)}
    calibration, training, evaluation = (
        next((parts[name] for name in names if name in parts), None)
        for names in (_CALIBRATION, _TRAINING, _EVALUATION)
    )
    if calibration is None or evaluation is None:
        classes = sorted(child.name for child in _folders(path))
        return Sets(None, _rows(path, classes, info, preprocessing), labels=tuple(classes))
    chosen = [part for part in (calibration, evaluation, training) if part is not None]
    classes = sorted({c.name for part in chosen for c in _folders(part)})
    rows = {part: _rows(part, classes, info, preprocessing) for part in set(chosen)}
    return Sets(rows[calibration], rows[evaluation], rows[training] if training else None, tuple(classes))


def _folders(path: Path) -> list[Path]:
    return sorted(c for c in path.iterdir() if c.is_dir() and not c.name.startswith("."))


def _rows(path: Path, classes: list[str], info: TensorInfo, preprocessing: Preprocessing) -> Rows:
    number = {name: i for i, name in enumerate(classes)}
    files = [
        (image, number[folder.name])
        for folder in _folders(path)
        for image in sorted(folder.rglob("*"))
        if image.suffix.lower() in SUFFIXES and not image.name.startswith(".")
    ]
    if not files:
        raise UsageError(
            f"{path}: no images in class folders",
            expected=f"folder/class/image with one of {', '.join(SUFFIXES)}",
            way_out="Put the images of each class into a folder of its own.",
        )

    def batches(order: np.ndarray, size: int) -> Iterator[Batch]:
        for start in range(0, len(order), size):
            chosen = [files[i] for i in order[start : start + size]]
            pixels = [_image(file, info, preprocessing) for file, _ in chosen]
            yield (np.stack(pixels),), np.array([label for _, label in chosen], dtype=np.int64)

    def prints(order: np.ndarray) -> set[bytes]:
        return {hashlib.blake2b(files[i][0].read_bytes(), digest_size=16).digest() for i in order}

    def name(row: int) -> str:
        return str(files[row][0].relative_to(path))

    def digest(order: np.ndarray) -> str:
        total = hashlib.sha256()
        for i in order:
            total.update(f"{files[i][1]}:".encode() + hashlib.sha256(files[i][0].read_bytes()).digest())
        return total.hexdigest()

    return Rows(
        len(files), batches, has_labels=True, where=str(path), name=name, prints=prints, digest=digest
    )


def _image(file: Path, info: TensorInfo, preprocessing: Preprocessing) -> np.ndarray:
    try:
        pixels = preprocessing.open_image(str(file))
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise UsageError(
            f"{file}: cannot be read as an image: {error}",
            expected="an image that Pillow reads",
            way_out="Remove or replace the file.",
        ) from error
    tail = info.shape[1:]
    height, width = tail[1:] if preprocessing.layout == "NCHW" else tail[:2]
    if pixels.shape[:2] != (height, width):
        raise UsageError(
            f"{file}: is {pixels.shape[0]}x{pixels.shape[1]} after preprocessing",
            expected=f"{height}x{width}, the model's input",
            way_out=f"Set resize = [{height}, {width}] in the [preprocessing] table of the recipe.",
        )
    return pixels
