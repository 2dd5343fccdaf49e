"""From the samples of a recording to the input of a model: log-mel spectrograms, with numpy alone.

Training, evaluation and device run this same code, so there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgekit_runtime.errors import ArtifactError, InputError

# No model needs more; a manifest that asks for it is no recipe but an attack on memory.
MOST: Final = 65536
# Quieter than any recording, and a number still.
LOWEST_DB: Final = -300.0
Samples = NDArray[np.float32] | NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Sound:
    """A power spectrum in windows, triangular bands of equal width in mel, decibels below the loudest band.

    A value of 1 is the loudest band of the recording, -1 is `floor_db` below it, or less. A shorter recording stands in
    the middle of silence, of a longer one the loudest part is taken.

    Attributes:
        rate: samples each second, in hertz.
        window: samples of a frame.
        hop: samples from one frame to the next.
        frames: of the input.
        bands: of the input.
        fft: samples of the Fourier transform, at least `window`.
        lowest_hz: where the first band begins.
        highest_hz: where the last band ends, at most half of `rate`.
        floor_db: decibels, below zero; what lies further below the loudest band is noise.
    """

    rate: int = 16000
    window: int = 400
    hop: int = 160
    frames: int = 98
    bands: int = 40
    fft: int = 512
    lowest_hz: float = 20.0
    highest_hz: float = 7600.0
    floor_db: float = -80.0

    def __post_init__(self) -> None:
        for name in ("rate", "window", "hop", "frames", "bands", "fft"):
            value = getattr(self, name)
            high = 1_000_000 if name == "rate" else MOST
            if type(value) is not int or not 1 <= value <= high:
                raise _wrong(name, value, f"a whole number from 1 to {high}")
        for name in ("lowest_hz", "highest_hz", "floor_db"):
            value = getattr(self, name)
            if type(value) not in {int, float} or not np.isfinite(value):
                raise _wrong(name, value, "a finite number")
        if self.fft < self.window:
            raise _wrong("fft", self.fft, f"at least the window, {self.window}")
        if not 0 <= self.lowest_hz < self.highest_hz <= self.rate / 2:
            raise _wrong("highest_hz", self.highest_hz, f"above lowest_hz, at most {self.rate / 2:g}")
        if not LOWEST_DB <= self.floor_db < 0:
            raise _wrong("floor_db", self.floor_db, f"a number below 0, at least {LOWEST_DB:g}")
        if self.length > MOST * 64 or self.frames * self.window > MOST * 64:
            raise _wrong("frames", self.frames, f"a recording of at most {MOST * 64} samples")
        for one, other in (("frames", "fft"), ("fft", "bands"), ("frames", "bands")):
            if getattr(self, one) * getattr(self, other) > MOST * 64:
                raise _wrong(one, getattr(self, one), f"at most {MOST * 64} numbers together with {other}")

    @staticmethod
    def from_manifest(table: object) -> Sound:
        """Read the table `sound` of the preprocessing.

        Raises:
            ArtifactError: a key that this version does not know, or a value that is none.
        """
        if not isinstance(table, Mapping):
            raise _wrong("(all of it)", table, "a table of numbers")
        known = [each.name for each in fields(Sound)]
        for key in table:
            if key not in known:
                raise _wrong(key, table[key], f"a key among {', '.join(known)}")
        return Sound(**table)

    @property
    def length(self) -> int:
        """Samples that a recording is brought to."""
        return self.window + (self.frames - 1) * self.hop

    def __call__(self, samples: Samples) -> NDArray[np.float32]:
        """Prepare one recording.

        Args:
            samples: [n], float32 from -1 to 1 or int16, any `n` of at least 1.

        Returns:
            float32 [1, 1, frames, bands].

        Raises:
            InputError: no such recording.
        """
        return self.log_mel(_real(samples))[None]

    def log_mel(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The spectrogram of float32 samples [n], float32 [1, frames, bands]."""
        cut = np.lib.stride_tricks.sliding_window_view(self.fitted(samples), self.window)[:: self.hop]
        power = np.abs(np.fft.rfft(cut * np.hanning(self.window), self.fft)) ** 2
        bands = power @ mel_filters(self)
        shape = (1, self.frames, self.bands)
        loudest = bands.max()
        if loudest <= 0:  # silence is below anything
            return np.full(shape, -1.0, np.float32)
        floor = 10 ** (self.floor_db / 10)
        decibels = 10 * np.log10(np.maximum(bands / loudest, floor))
        scaled: NDArray[np.float32] = (1 - 2 * decibels / self.floor_db).astype(np.float32).reshape(shape)
        return scaled

    def fitted(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Exactly `length` samples of any number of them."""
        spare = self.length - len(samples)
        if spare >= 0:
            return np.pad(samples, (spare // 2, spare - spare // 2))
        energy = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
        start = int(np.argmax(energy[self.length :] - energy[: -self.length]))
        return samples[start : start + self.length]

    def band_of(self, hertz: float) -> int:
        """The band whose centre is nearest to a frequency."""
        centres = np.linspace(_mel(self.lowest_hz), _mel(self.highest_hz), self.bands + 2)[1:-1]
        return int(np.argmin(np.abs(centres - _mel(hertz))))


@cache
def mel_filters(sound: Sound) -> NDArray[np.float64]:
    """Weights from the bins of the spectrum to triangular bands of equal width in mel.

    The scale is that of O'Shaughnessy 1987: `mel = 2595 log10(1 + hertz / 700)`.

    Returns:
        float64 [fft // 2 + 1, bands], not negative; the peak of every band is at most 1.
    """
    bins = np.arange(sound.fft // 2 + 1) * sound.rate / sound.fft
    corners = _hertz(np.linspace(_mel(sound.lowest_hz), _mel(sound.highest_hz), sound.bands + 2))
    lower, centre, upper = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    filters: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    filters.setflags(write=False)  # one array for all callers
    return filters


def _real(samples: Samples) -> NDArray[np.float32]:
    array = np.asarray(samples)
    if array.ndim != 1 or array.size == 0 or array.dtype not in (np.int16, np.float32):
        raise InputError(
            f"samples of {array.dtype} {list(array.shape)}",
            expected="int16 or float32 [n], one channel, at least one sample",
            way_out="Mix the channels down, and give the rate that the manifest names.",
            code="input",
        )
    if array.dtype == np.int16:
        return array.astype(np.float32) / np.float32(32768)
    real = array.astype(np.float32, copy=False)
    if not np.isfinite(real).all():
        raise InputError(
            "samples that are not finite",
            expected="numbers from -1 to 1",
            way_out="Look at the microphone's driver, or at what was done to the samples.",
            code="input",
        )
    return real


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def _hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    hertz: NDArray[np.float64] = 700 * (10 ** (mel / 2595) - 1)
    return hertz


def _wrong(key: str, value: object, expected: str) -> ArtifactError:
    return ArtifactError(
        f"preprocessing.sound: {key} = {value!r}"[:300],
        expected=expected,
        way_out="Update edgekit-runtime, or correct the recipe and compress again.",
        code="preprocessing",
    )
