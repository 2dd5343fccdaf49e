"""From a recording to what the keyword network reads: the log-mel spectrogram of a fixed stretch of sound.

25 ms windows every 10 ms, a power spectrum, triangular bands of equal width in mel, decibels below the loudest band of
the recording. It is the device's own code, told by the same numbers as the recipe tells the device.
"""

from __future__ import annotations

import io
import wave
from typing import Final

import numpy as np
import numpy.typing as npt

from edgekit.errors import UsageError
from edgekit_runtime.sound import Sound

RATE: Final = 8000
FRAMES: Final = 64
BANDS: Final = 32
# 655 ms: 95% of the recordings are shorter. What lies 60 dB below the loudest band is noise.
SOUND: Final = Sound(
    rate=RATE, window=RATE * 25 // 1000, hop=RATE * 10 // 1000, frames=FRAMES, bands=BANDS, fft=256,
    lowest_hz=60.0, highest_hz=3800.0, floor_db=-60.0,
)  # fmt: skip
WINDOW: Final = SOUND.window
LENGTH: Final = SOUND.length
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
    return SOUND.fitted(samples)


def log_mel(samples: Floats) -> Floats:
    """The network's input for one recording.

    Args:
        samples: `[n]` at 8 kHz, any `n` and loudness.

    Returns:
        float32 `[1, 64, 32]` (channel, frame, band): 1 is the loudest band, -1 is 60 dB below it, or less.
    """
    return SOUND.log_mel(samples)
