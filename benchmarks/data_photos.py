"""Photographs that calibrate and photographs that judge: none does both."""

from __future__ import annotations

from examples.photos import SKIMAGE, SKLEARN

CALIBRATION = (
    SKLEARN / "china.jpg",
    SKIMAGE / "coffee.png",
    SKIMAGE / "rocket.jpg",
    SKIMAGE / "camera.png",
    SKIMAGE / "retina.jpg",
    SKIMAGE / "gravel.png",
)
EVALUATION = (
    SKLEARN / "flower.jpg",
    SKIMAGE / "astronaut.png",
    SKIMAGE / "chelsea.png",
    SKIMAGE / "motorcycle_left.png",
    SKIMAGE / "coins.png",
    SKIMAGE / "hubble_deep_field.jpg",
)
