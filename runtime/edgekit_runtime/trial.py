"""STAGE: try a release out on this very device, in a process of its own.

A file that was damaged, or that a backend of this version cannot take, may kill the process that loads it; the golden
vectors tell whether this chip computes what was evaluated; the clock tells whether it is fast enough here. What is
refused has a code that is stored and reported.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from edgekit_runtime.backends import BACKENDS, installed
from edgekit_runtime.bundle import locate_in
from edgekit_runtime.contract import Manifest
from edgekit_runtime.errors import ArtifactError, BackendError, DeviceError, NetworkError
from edgekit_runtime.model import Model
from edgekit_runtime.process import own_module
from edgekit_runtime.store import Store

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 300.0
# What a process with a backend takes besides the model, and how much more than its file a model takes in memory.
PROCESS_BYTES: Final = 64 << 20
MEMORY_PER_BYTE: Final = 3.0
# Predictions that are timed at once; where their median is too long they are timed again, as others may have been busy.
ROUNDS: Final = 20
TIMED: Final = 3
# Manifests count in versions of TensorFlow Lite; its successor began anew with what had been 2.17.
COUNTED_ANEW: Final = MappingProxyType({"ai-edge-litert": "2.17.0"})
MEMINFO: Final = Path("/proc/meminfo")
# Whom Linux ends first when memory runs out: from -1000, never, to 1000; proc(5).
VICTIM: Final = Path("/proc/self/oom_score_adj")


def stage(
    store: Store, *, timeout_s: float = TIMEOUT_S, going_on: Callable[[], None] = lambda: None
) -> Callable[[str], None]:
    """The deed of the phase STAGE.

    Args:
        store: of the device.
        timeout_s: after which a trial counts as hung.
        going_on: is called now and then meanwhile, and may raise to cut the trial off.

    Returns:
        Takes the id of a release; raises ArtifactError or DeviceError with the code of why not.
    """

    def deed(release: str) -> None:
        manifest = store.manifest(store.release(release))
        check_memory(manifest, _available_bytes())
        answer = _in_a_process(store.path, release, timeout_s, going_on)
        if answer.get("code"):
            kind = BackendError if answer["code"] in PASSING else ArtifactError
            raise kind(
                answer["what"], expected=answer["expected"], way_out=answer["way_out"], code=answer["code"]
            )
        log.info("tried out", extra={"release": release[:12], **answer})

    return deed


# Seconds between two looks at whether a trial should go on.
STEP_S: Final = 0.5
# Signals by which somebody stops this device or its agent, and no crash; SIGKILL is the system's, short of memory.
STOPPED: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
# Refusals that say something of this device today and nothing of the release.
PASSING: Final = frozenset({"no_backend", "no_memory", "old_runtime", "no_provider", "no_delegate"})


def check_memory(manifest: Manifest, available_bytes: int | None) -> None:
    """Refuse what would not fit beside what runs, before it is loaded and the system kills somebody for it.

    Raises:
        BackendError: too little memory is left; `no_memory`.
    """
    largest = max(artifact.size_bytes for artifact in manifest.artifacts)
    needed = PROCESS_BYTES + round(MEMORY_PER_BYTE * largest)
    if available_bytes is not None and needed > available_bytes:
        raise BackendError(
            f"{manifest.name} {manifest.version} needs about {needed:,} bytes of memory",
            expected=f"at most the {available_bytes:,} that are available",
            way_out="Stop other programs, or publish a smaller model.",
            code="no_memory",
        )


def check_versions(manifest: Manifest, version_of: Callable[[str], str | None]) -> None:
    """Hold the backends that are here against what the manifest asks for.

    Args:
        manifest: of the release.
        version_of: distribution to its version, None where it is not installed.

    Raises:
        BackendError: every backend that is here is older; `old_runtime`.
    """
    old: list[str] = []
    for artifact in manifest.artifacts:
        wanted = manifest.compatibility.minimum_runtime.get(artifact.format)
        there = ((d, version_of(d)) for d in BACKENDS[artifact.format].distributions)
        here = next((COUNTED_ANEW.get(name, version) for name, version in there if version), None)
        if here is None:
            continue
        if wanted is None or _numbers(here) >= _numbers(wanted):
            return
        old.append(f"{artifact.format} {here} is older than {wanted}")
    if old:
        raise BackendError(
            f"{manifest.name} {manifest.version}: {'; '.join(old)}",
            expected="the runtime that the manifest names, or a newer one",
            way_out="Update the backend, or publish the bundle for the version that is here.",
            code="old_runtime",
        )


def try_out(store: Path, release: str) -> dict[str, Any]:
    """Load a release, run its golden vectors, and time it.

    Returns:
        Figures.

    Raises:
        DeviceError: with the code of what does not fit.
    """
    place = Store(store)
    document = place.release(release)
    manifest = place.manifest(document)
    check_versions(manifest, _version)
    formats = [a.format for a in manifest.artifacts if installed(a.format)]
    began = time.perf_counter()
    model = Model.of(manifest, locate_in(document, place.blob))
    loaded = time.perf_counter()
    tested = model.self_test()
    if not tested.ok:
        raise ArtifactError(
            f"{manifest.name} {manifest.version}: {tested.worst_steps:g} steps off on {tested.n} known inputs",
            expected=f"at most {tested.allowed_steps:g} steps, as where it was evaluated",
            way_out="This chip or backend computes something else; compare `edgekit-runtime doctor` with the report.",
            code="golden",
        )
    latency_ms = check_latency(manifest, lambda: _latency_ms(model))
    return {
        "format": model.info.format,
        "formats": formats,
        "load_ms": 1e3 * (loaded - began),
        "worst_steps": tested.worst_steps,
        "latency_ms": latency_ms,
        # Kilobytes on Linux, bytes on macOS.
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1024 if sys.platform != "darwin" else 1),
    }


def check_latency(manifest: Manifest, measure: Callable[[], float]) -> float:
    """Hold the speed on this chip against what the manifest allows.

    Args:
        manifest: of the release.
        measure: median milliseconds of a prediction.

    Returns:
        The best median.

    Raises:
        ArtifactError: none of them is within the limit; `latency`.
    """
    limit = manifest.compatibility.max_latency_ms
    best = measure()
    if limit is None:
        return best
    for _ in range(TIMED - 1):
        if best <= limit:
            break
        best = min(best, measure())
    if best > limit:
        raise ArtifactError(
            f"{manifest.name} {manifest.version}: a prediction takes {best:.3g} ms here",
            expected=f"at most the {limit:g} ms that its manifest allows",
            way_out="Publish a faster model for devices like this, or raise [device] max_latency_ms in the recipe.",
            code="latency",
        )
    return best


def _latency_ms(model: Model) -> float:
    """Median milliseconds of a call.

    The agent gives way to whatever serves. Where that has the processor, a call waits; processor time does not.
    """
    import numpy as np

    feed = {
        end.name: np.zeros([1 if n == -1 else n for n in end.shape], end.dtype) for end in model.info.inputs
    }
    times = []
    for _ in range(ROUNDS):
        began, spent = time.perf_counter(), time.process_time()
        model.predict(feed)
        times.append(1e3 * min(time.perf_counter() - began, time.process_time() - spent))
    return sorted(times)[ROUNDS // 2]


def _in_a_process(
    store: Path, release: str, timeout_s: float, going_on: Callable[[], None]
) -> dict[str, Any]:
    command = own_module("edgekit_runtime.trial", str(store), release)
    # In a session of its own, so that Ctrl-C does not look like its crash.
    process = subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            output, complaints = _wait(process, timeout_s, going_on)
        except BaseException:
            process.kill()
            raise
    said = output.decode(errors="replace").strip().splitlines()
    try:
        answer = json.loads(said[-1])
    except (IndexError, ValueError):
        answer = None
    if -process.returncode in STOPPED:
        raise NetworkError(
            f"the trial of {release[:12]} was told to stop",
            expected="time for a trial",
            way_out="The next start goes on.",
            code="stopped",
        )
    if -process.returncode == signal.SIGKILL:
        raise _no_memory(f"the trial of {release[:12]} was killed by the system")
    # Whoever dies after the answer has damaged memory before it.
    if process.returncode or not isinstance(answer, dict):
        last = (complaints.decode(errors="replace").strip().splitlines() or [""])[-1][:300]
        raise ArtifactError(
            f"the trial of {release[:12]} died with status {process.returncode} {last}".rstrip(),
            expected="a model that this backend loads",
            way_out="Publish the bundle for the backend that is here; `edgekit-runtime doctor` tells which.",
            code="trial_crashed",
        )
    return answer


def _wait(
    process: subprocess.Popen[bytes], timeout_s: float, going_on: Callable[[], None]
) -> tuple[bytes, bytes]:
    end_s = time.monotonic() + timeout_s
    while True:
        going_on()
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise ArtifactError(
                f"the trial did not end within {timeout_s:g} s",
                expected="a model that loads and answers",
                way_out="Run `edgekit-runtime run` on the file to see where it hangs.",
                code="trial_hung",
            )
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=min(STEP_S, left_s))


def _no_memory(what: str) -> BackendError:
    return BackendError(
        what,
        expected="room for the model beside what runs",
        way_out="Stop other programs, or publish a smaller model.",
        code="no_memory",
    )


def _available_bytes() -> int | None:
    """Memory that is free, or would be if asked for; None where the system does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text("ascii", "replace"), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _told(error: DeviceError) -> dict[str, Any]:
    return {
        "code": error.code, "what": error.what, "expected": error.expected, "way_out": error.way_out,
    }  # fmt: skip


def main(store: str, release: str) -> int:
    """Print one line of JSON: figures, or the code of why not."""
    # A model may ask for more memory than its file lets expect; then this process goes, and not the one that serves.
    with suppress(OSError):
        VICTIM.write_text("1000", "ascii")
    try:
        answer = try_out(Path(store), release)
    except DeviceError as error:
        answer = _told(error)
    except MemoryError:
        answer = _told(_no_memory("memory ran out"))
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
