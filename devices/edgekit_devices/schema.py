"""What a profile says.

ProfileError        unknown name, or a file that is no profile
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FORMATS = ("onnx", "tflite", "coreml")
FEATURES = (
    *("neon", "fp16", "dotprod", "i8mm", "sve2", "sme"),
    *("avx2", "avx512", "avx_vnni", "avx512_vnni", "amx_int8", "helium"),
)
BACKENDS = ("onnxruntime", "ai-edge-litert", "tflite-runtime", "coreml", "tflite-micro")
DELEGATES = ("xnnpack", "cpu", "coreml", "cuda", "cmsis-nn", "none")
WHEELS = ("onnxruntime", "ai-edge-litert", "tflite-runtime")
MEASURED = "measured"
# A figure of a class of machines: typical, of no machine in particular.
ASSUMED = "assumed"
# Every one of these that a profile states has its source.
FIGURES = (
    "processors",
    "l3_kb",
    "memory_mb",
    "bandwidth_gb_s",
    "flash_kb",
    "ram_kb",
    "wheels",
    "calibration",
)


class ProfileError(Exception):
    """A device that is not known, or a profile that cannot be read.

    Args:
        what: what was found.
        expected: what would be right.
        way_out: what to do.
    """

    exit_code = 2

    def __init__(self, what: str, *, expected: str, way_out: str) -> None:
        self.what, self.expected, self.way_out = what, expected, way_out
        super().__init__(f"{what}\n  expected: {expected}\n  way out:  {way_out}")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Processor cores of one kind.

    Attributes:
        core: its design, lower case, as in "cortex-a53".
        count: how many there are.
        ghz: highest clock.
        l1_kb: first level data cache of each, None where nobody says.
        l2_kb: second level cache, of each or shared.
    """

    core: str
    count: int
    ghz: float
    l1_kb: int | None = None
    l2_kb: int | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """An operator that a calibration timed.

    Attributes:
        kind: "conv", "depthwise", "linear", "add", ….
        shape: input channels that a result sums over, output channels, elements of the kernel, results a channel.
        work: multiply-accumulates, or elements for what does not multiply.
        ms: of one such operator inside a file.
    """

    kind: str
    shape: tuple[int, int, int, int]
    work: int
    ms: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What operators of one precision take in one runtime.

    Attributes:
        format: "onnx" or "tflite".
        precision: "int8" or "float32".
        threads: that it ran with.
        call_ms: of a call that does nothing.
        op_ms: least time of any operator.
        points: what was timed.
    """

    format: str
    precision: str
    threads: int
    call_ms: float
    op_ms: float
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of device.

    Attributes:
        name: as in `--target`, the stem of its file.
        title: for people.
        isa: instruction set with the extension that decides int8 speed.
        preferred_format: artifact to run there, from `FORMATS`.
        threads: to time with.
        int8_saturates: uint8 × int8 kernels add pairs in 16 bits and clip; weights then need 7 bits.
        notes: plain sentences.
        sources: figure to the address that it is from, or "measured", or "assumed" for a class of machines.
        cores: of all processors, None for a class of machines.
        features: extensions of the instruction set, from `FEATURES`.
        processors: kinds of cores; empty where latency cannot be predicted.
        l3_kb: cache that all cores share.
        memory_mb: main memory of the smallest variant.
        bandwidth_gb_s: of main memory, by its data sheet.
        flash_kb: of a microcontroller, for the file.
        ram_kb: of a microcontroller, for activations.
        backend: package that runs the preferred format, from `BACKENDS`.
        delegate: kernels that it uses, from `DELEGATES`.
        wheels: runtimes that pip installs there, from `WHEELS`.
        thermal: what heat does to the clock; "" where nothing is known.
        calibration: operators that were timed on this very device.
    """

    name: str
    title: str
    isa: str
    preferred_format: str
    threads: int
    int8_saturates: bool
    notes: tuple[str, ...]
    sources: Mapping[str, str]
    cores: int | None = None
    features: tuple[str, ...] = ()
    processors: tuple[Cluster, ...] = ()
    l3_kb: int | None = None
    memory_mb: int | None = None
    bandwidth_gb_s: float | None = None
    flash_kb: int | None = None
    ram_kb: int | None = None
    backend: str = "onnxruntime"
    delegate: str = "cpu"
    wheels: tuple[str, ...] = ()
    thermal: str = ""
    calibration: tuple[Calibration, ...] = ()

    @property
    def size_only(self) -> bool:
        """A microcontroller: models fit or do not, and nothing is said about their latency."""
        return self.flash_kb is not None
