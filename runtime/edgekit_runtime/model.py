"""`Model`: one way to run a file, whatever backend runs it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekit_runtime.backends import BACKENDS, Array, Session, Settings, installed, open_session
from edgekit_runtime.bundle import MANIFEST, Bundle, Locate, check_artifact
from edgekit_runtime.contract import Artifact, Manifest
from edgekit_runtime.ends import End, as_array, fit, misfit, of_file, of_manifest
from edgekit_runtime.errors import ArtifactError, BackendError, InputError
from edgekit_runtime.golden import SelfTest, compare, read_golden
from edgekit_runtime.preprocessing import Preprocessing
from edgekit_runtime.sound import Sound

# A package runs on macOS alone, where nothing else uses the neural engine; TFLite is fastest on most boards.
CHOICE: Final = ("coreml", "tflite", "onnx")
NO_SETTINGS: Final = Settings()


@dataclass(frozen=True, slots=True)
class Info:
    """What a model is.

    Attributes:
        name: of the model, or of its file.
        version: "" for a file without a manifest.
        format: "tflite", "onnx" or "coreml".
        task: "" when unknown.
        labels: class names in the order of the output.
        inputs: as `predict` takes them.
        outputs: as `predict` gives them.
        preprocessing: how pixels or samples become the input, None where the manifest does not say.
    """

    name: str
    version: str
    format: str
    task: str
    labels: tuple[str, ...]
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    preprocessing: Preprocessing | Sound | None = None


class Model:
    """A model that is loaded. Safe to call from several threads."""

    __slots__ = (
        "__weakref__",
        "_any_batch",
        "_entries",
        "_exits",
        "_golden",
        "_lead",
        "_rows",
        "_session",
        "info",
    )

    def __init__(self, session: Session, info: Info, golden: Path | None) -> None:
        self.info, self._session, self._golden = info, session, golden
        self._any_batch = all(port.shape[:1] == (-1,) for port in session.inputs)
        # Samples are told by the first input that has axes: a single number is a setting.
        self._lead = next((end for end in info.inputs if end.shape), None)
        self._rows = session.inputs[self._lead.place].shape[0] if self._lead else 1
        self._entries = tuple(sorted(info.inputs, key=lambda end: end.place))
        self._exits = tuple((end.name, end.place, end.convert) for end in info.outputs)

    @staticmethod
    def load(path: str | Path, *, format: str | None = None, settings: Settings = NO_SETTINGS) -> Model:
        """Load a bundle, or a `.tflite`, `.onnx` or `.mlpackage` that anybody made.

        Args:
            path: of the directory or file.
            format: of the bundle's files to run; by default the first that is installed here.
            settings: threads, providers, delegates.

        Raises:
            ArtifactError: the bundle is damaged, or lies about itself.
            BackendError: no backend runs it here.
        """
        place = Path(path)
        try:
            place.stat()
            whole = (place / MANIFEST).exists()
        except (OSError, ValueError) as error:
            raise _unknown(place, getattr(error, "strerror", None) or str(error)) from error
        if whole:
            bundle = Bundle.open(place)
            return Model.of(bundle.manifest, bundle.locate, format=format, settings=settings)
        kind = format or _sniff(place)
        if kind not in BACKENDS:
            raise InputError(
                f"the format {kind!r}",
                expected=f"one of {', '.join(BACKENDS)}",
                way_out="Leave it out: the file says what it is.",
                code="option",
            )
        session = open_session(kind, place, settings)
        info = Info(
            place.stem, "", kind, "", (),
            of_file(session.inputs, into=True), of_file(session.outputs, into=False),
        )  # fmt: skip
        return Model(session, info, None)

    @staticmethod
    def of(
        manifest: Manifest,
        locate: Locate,
        *,
        format: str | None = None,
        settings: Settings = NO_SETTINGS,
    ) -> Model:
        """Load an artifact of a manifest.

        Args:
            manifest: of the bundle.
            locate: path inside the bundle → where the file lies.
            format: as in `load`.
            settings: as in `load`.

        Raises:
            ArtifactError: a file is damaged, or is not what the manifest says.
            BackendError: no backend runs it here.
        """
        artifact = _choose(manifest, format)
        path = locate(artifact.file)
        check_artifact(artifact, path)
        session = open_session(artifact.format, path, settings)
        info = Info(
            manifest.name, manifest.version, artifact.format, manifest.task, manifest.labels,
            of_manifest(manifest, artifact, session.inputs, into=True),
            of_manifest(manifest, artifact, session.outputs, into=False),
            _preparation(manifest.preprocessing),
        )  # fmt: skip
        return Model(session, info, locate(artifact.golden))

    def prepare(self, raw: Array) -> Array:
        """Make the input of an image or a recording, as the model was evaluated on.

        Args:
            raw: pixels, uint8 [height, width, 3] in RGB order or [height, width] in gray; or samples, int16 or
                float32 [n].

        Returns:
            The input, with its batch axis.

        Raises:
            InputError: no such image or recording, or the manifest does not say how.
        """
        if self.info.preprocessing is None:
            raise InputError(
                f"{self.info.name}: the manifest does not say how its input is made",
                expected="a bundle with a [preprocessing] table in its recipe",
                way_out="Prepare the input in the application, as for the training, and call predict.",
                code="input",
            )
        return self.info.preprocessing(raw)

    def predict(self, x: Array | Mapping[str, Array]) -> Any:
        """Run the model once. Nothing is left of the calls before: a recurrent network begins in its initial state.

        Args:
            x: the input, or name to input where there are several; real values in the axes of the user's model, with
                or without the batch axis.

        Returns:
            The output, or name to output where there are several, as numpy arrays that the caller may keep.

        Raises:
            InputError: a name, a shape, a dtype or a number that does not fit.
            BackendError: the backend computes no answer of what fits.
        """
        arrays, bare = self._ready(x), False
        if arrays is None:
            given = self._named(x)
            if self._is_batch(given):
                return self.predict_batch(given)
            arrays, bare = self._fitted(given), self._is_bare(given)
        found = self._run(arrays)
        if bare:
            # What a file gives without an axis for samples stays as it is.
            found = [y[0] if y.shape[:1] == (1,) else y for y in found]
        return found[0] if len(found) == 1 else self._by_name(found)

    def predict_raw(self, raw: Array) -> Any:
        """Run the model on an image or a recording: `prepare`, then `predict`."""
        return self.predict(self.prepare(raw))

    def predict_batch(self, x: Array | Mapping[str, Array]) -> Any:
        """Run the model on any number of samples, one after the other where the file takes one at a time.

        Args:
            x: as for `predict`, with the batch axis.

        Returns:
            As `predict`, with the batch axis.

        Raises:
            InputError: as `predict`; also where the inputs have different numbers of samples, or none, or where an
                output does not tell samples apart.
            BackendError: as `predict`.
        """
        given = self._named(x)
        counts = {np.shape(value)[:1] for value in given.values()}
        if len(counts) != 1 or counts in ({()}, {(0,)}):
            raise InputError(
                f"inputs with {sorted(counts)} samples",
                expected="the same number for each input, at least one",
                way_out="Put one axis for the samples first.",
                code="input",
            )
        ((n,),) = counts
        for end in self._entries:
            if end.shape and given[end.name].ndim != len(end.shape):
                # One sample would be taken apart, where the file leaves the axis after the first one open.
                raise misfit(end, f"has the shape {given[end.name].shape}")
        if self._any_batch or self._rows > 1:
            found = self._run(self._fitted(given))
        else:
            rows = [self._row(self._sample(given, i)) for i in range(n)]
            found = [np.concatenate(parts) for parts in zip(*rows, strict=True)]
        return found[0] if len(found) == 1 else self._by_name(found)

    def self_test(self) -> SelfTest:
        """Run the golden vectors of the bundle on this device.

        Raises:
            ArtifactError: there are none, or they do not fit the model.
        """
        if self._golden is None:
            raise ArtifactError(
                f"{self.info.name}: a file without a bundle has no known answers",
                expected="a bundle that `edgekit compress` wrote",
                way_out="Load the bundle instead of the file in it.",
                code="golden_file",
            )
        golden = read_golden(self._golden)
        if len(golden.inputs) != len(self.info.inputs) or len(golden.outputs) != len(self.info.outputs):
            raise ArtifactError(
                f"{self._golden}: vectors of {len(golden.inputs)} inputs and {len(golden.outputs)} outputs",
                expected=f"{len(self.info.inputs)} and {len(self.info.outputs)}, as in the manifest",
                way_out="Write the bundle again with `edgekit compress`.",
                code="golden_file",
            )
        names = [end.name for end in self.info.inputs]
        try:
            found = self.predict_batch(dict(zip(names, golden.inputs, strict=True)))
        except InputError as error:
            raise ArtifactError(
                f"{self._golden}: {error.what}",
                expected=error.expected,
                way_out="Write the bundle again with `edgekit compress`.",
                code="golden_file",
            ) from error
        outputs = [found] if len(self.info.outputs) == 1 else [found[end.name] for end in self.info.outputs]
        return compare(golden, outputs)

    def _ready(self, x: Array | Mapping[str, Array]) -> list[Array] | None:
        """The one input that already is what the file takes: nearly every call there is."""
        if isinstance(x, np.ndarray) and len(self._entries) == 1:
            end = self._entries[0]
            if (
                x.dtype == end.dtype
                and x.ndim == len(end.shape)
                and x.shape[1:] == end.shape[1:]
                and (not x.ndim or self._rows in (-1, x.shape[0]))
            ):
                return [end.convert(x) if end.convert else x]
        return None

    def _is_bare(self, given: Mapping[str, Array]) -> bool:
        """Whether samples come without an axis for them."""
        return self._lead is not None and given[self._lead.name].ndim == len(self._lead.shape) - 1

    def _is_batch(self, given: Mapping[str, Array]) -> bool:
        """Whether there are several samples for a file that takes one."""
        if self._lead is None or self._rows != 1 or self._lead.shape[0] not in (-1, 1):
            return False
        x = given[self._lead.name]
        return x.ndim == len(self._lead.shape) and x.shape[0] != 1

    def _sample(self, given: Mapping[str, Array], i: int) -> Mapping[str, Array]:
        single = {end.name for end in self._entries if not end.shape and not end.any_rank}
        return {name: x[i] if name in single else x[i : i + 1] for name, x in given.items()}

    def _row(self, given: Mapping[str, Array]) -> list[Array]:
        found = self._run(self._fitted(given))
        for (name, _, _), y in zip(self._exits, found, strict=True):
            if y.shape[:1] != (1,):
                raise InputError(
                    f"the output {name!r} of one sample has the shape {y.shape}, which does not tell samples apart",
                    expected="one sample at a time, as this file has no axis for them",
                    way_out="Call predict for each sample.",
                    code="input",
                )
        return found

    def _named(self, x: Array | Mapping[str, Array]) -> Mapping[str, Array]:
        names = [end.name for end in self.info.inputs]
        if not isinstance(x, Mapping) and len(names) == 1:
            x = {names[0]: x}
        if not isinstance(x, Mapping) or x.keys() != set(names):
            raise InputError(
                f"inputs {', '.join(map(repr, x))}" if isinstance(x, Mapping) else "one input",
                expected=", ".join(map(repr, names)) or "none",
                way_out="Pass one array for each input, by its name.",
                code="input",
            )
        return {name: as_array(name, value) for name, value in x.items()}

    def _fitted(self, given: Mapping[str, Array]) -> list[Array]:
        arrays = []
        for end in self._entries:
            array = fit(end, given[end.name])
            # Not `ascontiguousarray`, which gives a single number an axis.
            arrays.append(end.convert(array) if end.convert else np.asarray(array, order="C"))
        return arrays

    def _run(self, arrays: Sequence[Array]) -> list[Array]:
        try:
            found = self._session.run(arrays)
        except MemoryError:
            raise
        except Exception as error:
            # Every backend has exceptions of its own.
            said = str(error).strip().splitlines() or [type(error).__name__]
            raise BackendError(
                f"{self.info.name}: {said[0][:300]}",
                expected="inputs that the model computes an answer from",
                way_out="Look at their shapes and values; `edgekit-runtime bench` runs the model on zeros.",
                code="run",
            ) from error
        return [convert(found[place]) if convert else found[place] for _, place, convert in self._exits]

    def _by_name(self, found: Iterable[Array]) -> dict[str, Array]:
        return {name: array for (name, _, _), array in zip(self._exits, found, strict=True)}


def _preparation(table: Mapping[str, Any]) -> Preprocessing | Sound | None:
    if "sound" not in table:
        return Preprocessing.from_manifest(table)
    if len(table) > 1:
        raise ArtifactError(
            f"preprocessing: {', '.join(map(repr, table))}",
            expected="either a table `sound`, or keys for images",
            way_out="Correct the recipe and compress again.",
            code="preprocessing",
        )
    return Sound.from_manifest(table["sound"])


def _choose(manifest: Manifest, format: str | None, here: Callable[[str], bool] = installed) -> Artifact:
    formats = [artifact.format for artifact in manifest.artifacts]
    if format is not None and format not in formats:
        raise ArtifactError(
            f"{manifest.name} {manifest.version} has no {format} file",
            expected=f"one of {', '.join(formats)}",
            way_out="Leave the format out, or compress with --format.",
            code="no_artifact",
        )
    mac = platform.system() == "Darwin"
    wanted = (format,) if format else tuple(each for each in CHOICE if mac or each != "coreml")
    for name in wanted:
        artifact = manifest.artifact(name)
        if artifact is not None and (format or here(name)):
            return artifact
    raise BackendError(
        f"{manifest.name} {manifest.version} has files for {', '.join(formats)}",
        expected="a backend for one of them",
        way_out=f"pip install 'edgekit-runtime[{formats[0]}]'",
        code="no_backend",
    )


def _sniff(path: Path) -> str:
    if path.is_dir():
        if (path / "Manifest.json").exists():
            return "coreml"
        raise _unknown(path, "a directory without a manifest.json")
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except (OSError, ValueError) as error:
        raise _unknown(path, getattr(error, "strerror", None) or str(error)) from error
    if head[4:8] == b"TFL3":
        return "tflite"
    # An ONNX file is a protobuf whose first field is its version, field 1, a varint.
    if head[:1] == b"\x08" or (head and path.suffix == BACKENDS["onnx"].suffix):
        return "onnx"
    raise _unknown(path, f"begins with {head!r}")


def _unknown(path: Path, found: str) -> ArtifactError:
    return ArtifactError(
        f"{path}: {found}",
        expected="a bundle, a .tflite, an .onnx or an .mlpackage",
        way_out="Give the directory that `edgekit compress` wrote, or a model file.",
        code="unknown_file",
    )
