"""What a benchmark somewhere else takes along: the harness, the runtime as a wheel, the files, and what to measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Final

from edgekit.bench.results import ModelFile, Result, Spec
from edgekit.bench.targets import Told, progress_of
from edgekit.errors import UsageError
from edgekit.remote.refusals import crashed
from edgekit.remote.session import Ended, Job, Source
from edgekit.remote.wheels import runtime_wheel
from edgekit_runtime.bundle import MANIFEST, Bundle
from edgekit_runtime.errors import DeviceError

HARNESS: Final = "harness.py"
SPEC: Final = "spec.json"
# Modules of the backends, of which one has to be there.
MODULES: Final[Mapping[str, tuple[str, ...]]] = {
    "onnx": ("onnxruntime",),
    "tflite": ("ai_edge_litert", "tflite_runtime"),
}


def pack(spec: Spec) -> Job:
    """The job that measures files on another machine.

    Args:
        spec: with paths of this machine.

    Raises:
        UsageError: a file is missing, or can be measured nowhere but here.
    """
    wheel = runtime_wheel()
    sources: list[Source] = []
    files: list[ModelFile] = []
    needs: dict[tuple[str, ...], None] = {("numpy",): None}
    for index, each in enumerate(spec.files):
        place, path = f"models/{index}", Path(each.path)
        if path.is_dir():
            found, formats = _of_bundle(path, each.format)
            files.append(replace(each, path=place))
        else:
            found, formats = _of_file(path), {each.format or path.suffix.removeprefix(".")}
            files.append(replace(each, path=f"{place}/{path.name}"))
        if not path.exists() or not formats <= MODULES.keys():
            raise _unfit(path)
        sources += [Source(f"{place}/{name}", there) for name, there in found.items()]
        needs[tuple(module for format in sorted(formats) for module in MODULES[format])] = None
    harness = resources.files("edgekit_devices").joinpath(HARNESS).read_bytes()
    own = (
        Source(HARNESS, harness),
        Source(wheel.name, wheel.content),
        Source(SPEC, replace(spec, files=tuple(files)).to_json().encode()),
    )
    return Job(
        (*own, *sources), ("{python}", HARNESS), stdin=SPEC, path=(f"{{folder}}/{wheel.name}",),
        needs=tuple(needs), ends_well=True,
    )  # fmt: skip


def unpack(ended: Ended, where: str, kind: str, device: str) -> Result:
    """The result that a harness brought.

    Args:
        ended: of the job.
        where: it ran.
        kind: of `edgekit.bench.results`.
        device: as it was asked for.

    Raises:
        UsageError: it crashed, or brought none.
        KeyboardInterrupt: Ctrl-C came before anything was measured.
    """
    if ended.status != 0:
        raise crashed(where, "the benchmark", ended.status, ended.lines)
    result = Result.from_json(ended.out, where)
    if result.interrupted and not result.runs:
        raise KeyboardInterrupt
    return replace(result, device=device, kind=kind)


def size_mb(job: Job) -> float:
    """What is copied, in 10^6 bytes."""
    return sum(each.size_bytes for each in job.files) / 1e6


def teller(job: Job, where: str, told: Told) -> tuple[Callable[[str], None], Callable[[int, int], None]]:
    """The two functions by which a job tells how far it is: lines of the harness, and bytes that are copied."""

    def line(text: str) -> None:
        if (progress := progress_of(text)) is not None:
            told(*progress)

    last = -1

    def copied(done: int, size: int) -> None:
        nonlocal last
        percent = 10 * (10 * done // max(size, 1))
        if percent != last:
            last = percent
            told(0.0, f"copying {size / 1e6:,.1f} MB to {where}: {percent}%")

    told(0.0, f"connecting to {where}; {size_mb(job):,.1f} MB are to be copied")
    return line, copied


def _of_file(path: Path) -> dict[str, Path]:
    """A file, and those beside it that hold the weights of an ONNX file which has them outside.

    Raises:
        UsageError: a file of weights is not there, or not in this folder.
    """
    found = {path.name: path}
    if path.suffix != ".onnx" or not path.is_file():
        return found
    for name in _outside(path):
        there = path.parent / name
        # The name is the file's own word, and is a path on the device, too.
        if (
            ".." in Path(name).parts
            or not there.is_file()
            or not there.resolve().is_relative_to(path.parent.resolve())
        ):
            raise UsageError(
                f"{path}: its weights are in {name}, which is not beside it",
                expected="the file of weights in the folder of the model, as it was exported",
                way_out="Copy both, or save the model as one file.",
            )
        found[name] = there
    return found


def _outside(path: Path) -> tuple[str, ...]:
    """Names of the files that hold weights of an ONNX file."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # noqa: BLE001 - protobuf raises what its C++ side threw
        # Its runtime says better what is wrong with it, and the other files are measured.
        return ()
    tensors = [each for each in model.graph.initializer if uses_external_data(each)]
    return tuple(dict.fromkeys(ExternalDataInfo(each).location for each in tensors))


def _of_bundle(path: Path, format: str | None) -> tuple[dict[str, Path], set[str]]:
    """Files of a bundle that are needed there, and the formats among them."""
    try:
        bundle = Bundle.open(path)
        artifacts = [each for each in bundle.manifest.artifacts if each.format == (format or each.format)]
        formats = {each.format for each in artifacts} & MODULES.keys()
        wanted = dict.fromkeys(_names(bundle, formats))
        return {name: bundle.locate(name) for name in wanted}, formats or {"none"}
    except DeviceError as error:
        raise UsageError(error.what, expected=error.expected, way_out=error.way_out) from error


def _names(bundle: Bundle, formats: set[str]) -> Iterator[str]:
    yield MANIFEST
    for each in bundle.manifest.artifacts:
        if each.format in formats:
            yield each.file
            yield each.golden


def _unfit(path: Path) -> UsageError:
    return UsageError(
        f"{path}: {'cannot be measured on another machine' if path.exists() else 'no such file'}",
        expected="a bundle with an ONNX or a TFLite file, a .onnx or a .tflite",
        way_out="Check the path, or compress with --format onnx,tflite.",
    )
