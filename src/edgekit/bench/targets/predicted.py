"""Estimates for a board that is not there, in the form of a result and marked as what they are."""

from __future__ import annotations

from pathlib import Path

from edgekit.bench.predict import Prediction, check_predictable, predict
from edgekit.bench.results import PREDICTED, Failure, Latency, Machine, Memory, Result, Run, Spec
from edgekit.bench.targets import Told, silent
from edgekit.errors import UsageError
from edgekit_devices import Profile
from edgekit_devices.harness import files_of, first_line
from edgekit_runtime.errors import DeviceError

NOTHING = Memory(None, None)


def measure(spec: Spec, profile: Profile, *, told: Told = silent) -> Result:
    """Estimate every file with every number of threads, at batch one.

    Args:
        spec: what to estimate; its times and rounds mean nothing here.
        profile: of the board.
        told: how far it is.

    Raises:
        UsageError: the profile says nothing about latency.
    """
    check_predictable(profile)
    runs: list[Run] = []
    doubts: list[Failure] = []
    errors: list[Failure] = []
    for index, file in enumerate(spec.files):
        told(index / len(spec.files), f"estimating {file.name}")
        try:
            for format, path in files_of({"path": file.path, "format": file.format}):
                found = [predict(Path(path), profile, threads=threads) for threads in spec.threads]
                runs += [_run(file.name, each) for each in found]
                doubts += [
                    Failure(f"{file.name} {format}", each.doubt()) for each in found[:1] if each.doubt()
                ]
        except (UsageError, DeviceError) as error:
            errors.append(Failure(file.name, error.what))
        except (ValueError, OSError) as error:
            errors.append(Failure(file.name, first_line(error)))
    skipped = tuple(
        Failure(profile.name, f"batch {batch}: an estimate is of batch 1") for batch in spec.batches if batch != 1
    )  # fmt: skip
    return Result(
        _machine(profile),
        tuple(runs),
        (),
        None,
        tuple(errors),
        (*doubts, *skipped),
        device=profile.name,
        kind=PREDICTED,
    )


def _run(name: str, found: Prediction) -> Run:
    return Run(
        name=name,
        format=found.format,
        threads=found.threads,
        batch=1,
        latency_ms=Latency(found.ms, None, None, found.ms, 0),
        per_s=1e3 / found.ms,
        rounds_ms=(),
        load_ms=None,
        cold_start_ms=None,
        memory_mb=NOTHING,
        energy_mj=None,
        interval_ms=(found.low_ms, found.high_ms),
    )


def _machine(profile: Profile) -> Machine:
    return Machine(
        system="",
        machine="",
        cpu=profile.isa,
        cores=profile.cores or profile.threads,
        isa=profile.features,
        memory_mb=float(profile.memory_mb) if profile.memory_mb else None,
        python="",
        runtimes={},
        model=profile.title,
    )
