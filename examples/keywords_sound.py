"""From a recording to what the keyword network reads: the log-mel spectrogram of a fixed stretch of sound.

25 ms windows every 10 ms, a power spectrum, triangular bands of equal width in mel, decibels below the loudest band of
the recording. numpy and the standard library are all it takes, so that a device can do the same.
"""

from __future__ import annotations

import io
import wave
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError

RATE: Final = 8000
WINDOW: Final = RATE * 25 // 1000
HOP: Final = RATE * 10 // 1000
FRAMES: Final = 64
BANDS: Final = 32
# 655 ms: 95% of the recordings are shorter.
LENGTH: Final = WINDOW + (FRAMES - 1) * HOP
FFT: Final = 256
LOWEST_HZ: Final = 60.0
HIGHEST_HZ: Final = 3800.0
# What lies further below the loudest band than this is noise.
FLOOR_DB: Final = -60.0
SHAPE: Final = (1, FRAMES, BANDS)

Floats = npt.NDArray[np.float32]


def read_wav(content: bytes, name: str) -> Floats:
    """The samples of a wav file.

    Args:
        content: of the file.
        name: of the file, for messages.

    Returns:
        float32 `[n]` from -1 to 1, `n` at least 1.

    Raises:
        UsageError: it is no wav file, not 8 kHz mono of 16 bits, cut off, or empty.
    """
    expected = f"a wav file of {RATE} Hz, one channel, 16 bits"
    try:
        with wave.open(io.BytesIO(content)) as file:
            found = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
            announced, frames = file.getnframes(), file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise UsageError(
            f"{name}: {str(error) or 'it ends too early'}",
            expected=expected,
            way_out="Is the file whole, and a wav file?",
        ) from error
    if found != (RATE, 1, 16):
        raise UsageError(
            f"{name}: {found[0]} Hz, {found[1]} channel(s), {found[2]} bits",
            expected=expected,
            way_out=f"Convert it, e.g. `sox {name} -r {RATE} -c 1 -b 16 converted.wav`.",
        )
    if not announced or len(frames) != 2 * announced:
        raise UsageError(
            f"{name}: {len(frames) // 2} of {announced} samples",
            expected="at least one sample, and all that the header announces",
            way_out="Is the file whole?",
        )
    return np.frombuffer(frames, "<i2").astype(np.float32) / np.float32(32768)


def fitted(samples: Floats) -> Floats:
    """Exactly `LENGTH` samples: a shorter recording in the middle of silence, of a longer one the loudest part.

    Args:
        samples: `[n]`, any `n`.

    Returns:
        `[LENGTH]`.
    """
    spare = LENGTH - len(samples)
    if spare >= 0:
        return np.pad(samples, (spare // 2, spare - spare // 2))
    energy = np.concatenate(([0.0], np.cumsum(np.square(samples, dtype=np.float64))))
    start = int(np.argmax(energy[LENGTH:] - energy[:-LENGTH]))
    return samples[start : start + LENGTH]


def log_mel(samples: Floats) -> Floats:
    """The network's input for one recording.

    Args:
        samples: `[n]` at 8 kHz, any `n` and loudness.

    Returns:
        float32 `[1, 64, 32]` (channel, frame, band): 1 is the loudest band, -1 is 60 dB below it, or less.
    """
    frames = np.lib.stride_tricks.sliding_window_view(fitted(samples), WINDOW)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(WINDOW), FFT)) ** 2
    bands = power @ mel_filters()
    loudest = bands.max()
    if loudest <= 0:  # silence is 60 dB below anything
        return np.full(SHAPE, -1.0, np.float32)
    floor = 10 ** (FLOOR_DB / 10)
    decibels = 10 * np.log10(np.maximum(bands / loudest, floor))
    scaled: Floats = (1 - 2 * decibels / FLOOR_DB).astype(np.float32).reshape(SHAPE)
    return scaled


@cache
def mel_filters() -> npt.NDArray[np.float64]:
    """Weights from the bins of the spectrum to triangular bands of equal width in mel.

    The scale is that of O'Shaughnessy 1987: `mel = 2595 log10(1 + hertz / 700)`.

    Returns:
        float64 `[129, 32]`, not negative; the peak of every band is at most 1.
    """
    bins = np.arange(FFT // 2 + 1) * RATE / FFT
    corners = _hertz(np.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_HZ), BANDS + 2))
    lower, centre, upper = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    filters: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    filters.setflags(write=False)  # one array for all callers
    return filters


def band_of(hertz: float) -> int:
    """The band whose centre is nearest to a frequency."""
    centres = np.linspace(_mel(LOWEST_HZ), _mel(HIGHEST_HZ), BANDS + 2)[1:-1]
    return int(np.argmin(np.abs(centres - _mel(hertz))))


def _mel(hertz: float) -> float:
    return float(2595 * np.log10(1 + hertz / 700))


def _hertz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    hertz: npt.NDArray[np.float64] = 700 * (10 ** (mel / 2595) - 1)
    return hertz
