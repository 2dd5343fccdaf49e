"""Pictures from files, as a camera would give them: numpy arrays [height, width, 3], uint8, RGB.

Binary PPM (`ffmpeg`, `rpicam-still --encoding rgb` and ImageMagick write it) and `.npy` need nothing; other formats
need Pillow, which a device seldom has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ALONE = (".ppm", ".npy")
WITH_PILLOW = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def pictures(folder: Path) -> list[Path]:
    """Files of a folder and the folders in it that are pictures, in the order of their names.

    Raises:
        SystemExit: there are none.
    """
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (*ALONE, *WITH_PILLOW))
    if not found:
        raise SystemExit(
            f"{folder}: no pictures\n  expected: files with one of {', '.join((*ALONE, *WITH_PILLOW))}"
        )
    return found


def read(path: Path) -> Any:
    """Pixels of a file.

    Raises:
        ValueError: it is no picture.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if suffix == ".ppm":
        return _read_ppm(path.read_bytes())
    try:
        from PIL import Image
    except ImportError:
        raise ValueError(f"{path}: only {', '.join(ALONE)} can be read without Pillow") from None
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _read_ppm(data: bytes) -> Any:
    """P6, width, height, largest value, each behind white space, then the pixels (ppm(5))."""
    words, rest = list[bytes](), data
    while len(words) < 4:
        rest = rest.lstrip()
        if rest[:1] == b"#":
            rest = rest.partition(b"\n")[2]
            continue
        word = rest.split(None, 1)[0] if rest else b""
        if not word:
            raise ValueError("a PPM that ends in its head")
        words.append(word)
        rest = rest[len(word) :]
    width, height, largest = map(int, words[1:])
    if words[0] != b"P6" or largest != 255:
        raise ValueError(f"{words[0]!r} with values up to {largest}: expected P6 with values up to 255")
    return np.frombuffer(rest, np.uint8, 3 * width * height, 1).reshape(height, width, 3)


def frames(folder: Path, *, rounds: int) -> Iterator[Any]:
    """What a camera that sees these pictures one after the other would give."""
    files = pictures(folder)
    for _ in range(rounds):
        for path in files:
            yield read(path)
