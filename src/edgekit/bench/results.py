"""What a benchmark is asked for and what came of it: SPEC and RESULT of `edgekit_devices.harness`, read strictly."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Final

from edgekit.errors import UsageError
from edgekit_runtime.strict_json import (
    ContractError,
    Fields,
    check_choice,
    is_real,
    parse,
    read_text,
    read_whole,
    show,
)

SCHEMA: Final = 1
MEASURED, EMULATED, PREDICTED = "measured", "emulated", "predicted"
KINDS: Final = (MEASURED, EMULATED, PREDICTED)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file to measure.

    Attributes:
        name: as it is shown.
        path: of a bundle, a `.onnx` or a `.tflite`, where the harness runs.
        format: "onnx" or "tflite"; None: what the ending says, or all that a bundle has of them.
    """

    name: str
    path: str
    format: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """What the harness is to measure: every file with every number of threads and every batch.

    Attributes:
        files: with names that tell them apart.
        threads: of the runtime.
        batches: samples a call; a file whose batch is fixed at another number is skipped.
        seconds: at least this long for each of them.
        min_rounds: at least so many rounds, while four times `seconds` are not over.
        warmup: calls before anything is timed.
        seed: of the inputs.
        sustained_s: seconds of a run without pauses at the end, for each file; 0 for none.
        cold_starts: fresh processes for each, of which the median counts.
        alone: each is opened in a fresh process first, which tells load time and memory, and where a file that brings
            its process down harms no other.
    """

    files: tuple[ModelFile, ...]
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    seconds: float = 5.0
    min_rounds: int = 50
    warmup: int = 10
    seed: int = 0
    sustained_s: float = 0.0
    cold_starts: int = 3
    alone: bool = True

    def to_json(self) -> str:
        """SPEC.json."""
        return json.dumps({"schema": SCHEMA, **asdict(self)})


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured.

    Attributes:
        system: and its release.
        machine: architecture, as `uname -m` says it.
        cpu: name of the processor.
        cores: that the harness may use.
        isa: extensions that decide which kernels a runtime picks.
        memory_mb: in 10^6 bytes, None where the system does not tell.
        python: version.
        runtimes: distribution to version.
        governor: of the clock, "" for none.
        model: of the board, "" where it does not tell.
        energy: what energy was read from, or why it was not.
    """

    system: str
    machine: str
    cpu: str
    cores: int
    isa: tuple[str, ...]
    memory_mb: float | None
    python: str
    runtimes: dict[str, str]
    governor: str = ""
    model: str = ""
    energy: str = ""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one call, over `n` calls; a percentile is None where they are too few for it."""

    p50: float
    p90: float | None
    p99: float | None
    mean: float
    n: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a process that holds one file, in 10^6 bytes; None where the system does not tell.

    Attributes:
        steady: after some predictions.
        peak: most until then.
        before: with the runtime imported and no file open.
    """

    steady: float | None
    peak: float | None
    before: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One file with one number of threads and one batch.

    Attributes:
        name: of the file.
        format: "onnx" or "tflite".
        threads: of the runtime.
        batch: samples a call.
        latency_ms: of one call.
        per_s: samples a second.
        rounds_ms: median of each round; row i of all runs of a result is the same round.
        load_ms: opening the file, in a fresh process.
        cold_start_ms: from the start of a fresh process to its first prediction.
        memory_mb: of a process of its own.
        energy_mj: of one call, in millijoules.
        interval_ms: of the median, where it is a prediction.
        notes: plain sentences.
    """

    name: str
    format: str
    threads: int
    batch: int
    latency_ms: Latency
    per_s: float
    rounds_ms: tuple[float, ...]
    load_ms: float | None
    cold_start_ms: float | None
    memory_mb: Memory
    energy_mj: float | None
    interval_ms: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, int, int]:
        """What tells it from the other runs of a result."""
        return self.name, self.format, self.threads, self.batch

    @property
    def title(self) -> str:
        """For people: the name of a file says its format already."""
        return self.name if self.name.endswith(f".{self.format}") else f"{self.name} {self.format}"


@dataclass(frozen=True, slots=True)
class Sustained:
    """A run without pauses: one value a second.

    Attributes:
        name: of the file.
        format: of it.
        threads: of the runtime.
        batch: samples a call.
        at_s: seconds since it began.
        latency_ms: median of the calls of that second.
        temperature_c: of the hottest zone.
        clock_mhz: of the processor.
    """

    name: str
    format: str
    threads: int
    batch: int
    at_s: tuple[float, ...]
    latency_ms: tuple[float, ...]
    temperature_c: tuple[float | None, ...]
    clock_mhz: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Noise:
    """What went on beside the rounds; None where the system does not tell.

    Attributes:
        seconds: that the rounds took.
        others_share: of all processors' time that other programs used.
        stolen_share: that the host gave to other virtual machines.
        load_1m: load average at the start.
        preempted_per_s: how often the measurement was pushed off its processor.
        clock_mhz: lowest and highest clock seen.
        temperature_c: at the start and at the end.
    """

    seconds: float
    others_share: float | None
    stolen_share: float | None
    load_1m: float | None
    preempted_per_s: float | None
    clock_mhz: tuple[float, ...] | None
    temperature_c: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be measured, or a batch that it does not take."""

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class Result:
    """RESULT.json, with the device that it is of.

    Attributes:
        machine: where it ran; of a prediction, the board as its profile has it.
        runs: in the order of the spec.
        sustained: runs without pauses.
        noise: None where nothing was measured.
        errors: files that could not be measured.
        skipped: what was not measured for a good reason.
        interrupted: it was stopped; what is there is sound.
        device: as it was asked for.
        kind: `MEASURED`; `EMULATED`, whose times say nothing; or `PREDICTED`.
        schema: of this form.
    """

    machine: Machine
    runs: tuple[Run, ...]
    sustained: tuple[Sustained, ...]
    noise: Noise | None
    errors: tuple[Failure, ...]
    skipped: tuple[Failure, ...] = ()
    interrupted: bool = False
    device: str = "local"
    kind: str = MEASURED
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if self.schema != SCHEMA:
            raise ContractError("schema", show(self.schema), str(SCHEMA))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: str | bytes, source: str) -> Result:
        """Read a result.

        Args:
            document: RESULT.json.
            source: whose it is, for messages.

        Raises:
            UsageError: it is no result; the key is named.
        """
        try:
            found: Result = _read(cls, parse(document), "")
        except ContractError as error:
            raise UsageError(
                f"{source}: {error.key or 'the answer'} is {error.found}",
                expected=error.expected,
                way_out="Run the benchmark again, with the same version of edgekit on both sides.",
            ) from error
        return found


@cache
def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read(kind: Any, value: object, path: str) -> Any:
    """Read a value of a type that the classes above have: strict, unlike what their constructors take."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _read(parts[0], value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise ContractError(path, show(value), "a list")
        return tuple(_read(parts[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ContractError(path, show(value), "an object")
        return {name: read_text(item, f"{path}.{name}") for name, item in value.items()}
    if is_dataclass(kind):
        optional = [f.name for f in fields(kind) if f.default is not MISSING]
        given = Fields(value, path, [f.name for f in fields(kind) if f.name not in optional], optional)
        hints = _types(typing.cast("type", kind))
        at = f"{path}." if path else ""
        build = typing.cast("Callable[..., Any]", kind)
        return build(**{name: _read(hints[name], given.take(name), at + name) for name in given.names})
    return _PLAIN[kind](value, path)


def _truth(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise ContractError(path, show(value), "true or false")
    return value


def _real(value: object, path: str) -> float:
    if not is_real(value):
        raise ContractError(path, show(value), "a finite number")
    return float(typing.cast("float", value))


_PLAIN: Final[dict[Any, Callable[[object, str], Any]]] = {
    bool: _truth,
    float: _real,
    int: read_whole,
    str: read_text,
}
