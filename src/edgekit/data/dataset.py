"""The one door for data: whatever the user has becomes batches to calibrate, to train and to measure with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.checks import check_batch
from edgekit.data.folder import open_folder
from edgekit.data.npz import open_npz, sets_of
from edgekit.data.preprocessing import Preprocessing, default_for
from edgekit.data.rows import Batch, Inputs, Rows, Sets, in_windows
from edgekit.data.stream import open_stream, user_source
from edgekit.errors import UsageError
from edgekit_converters.program import TensorInfo

Spec = str | Path | Mapping[str, Any] | Sequence[Any] | None
_SCAN = 64


@dataclass(frozen=True)
class Data:
    """Calibration, training and evaluation samples, read in batches as often as wanted.

    Attributes:
        inputs: of the model.
        preprocessing: what turned raw data into inputs, None if the data came ready.
        real: False when there is no data at all, and inputs have to be made up.
        n_calibration: samples to calibrate with.
        n_evaluation: samples to measure on.
        has_labels: evaluation batches carry labels.
        labels: class names, if the source knows them.
        notes: warnings and assumptions, for the report.
        n_training: samples to train on; 0 where nobody asked for them or there are none.
        training_has_labels: training batches carry labels.
    """

    inputs: tuple[TensorInfo, ...]
    preprocessing: Preprocessing | None
    real: bool
    n_calibration: int
    n_evaluation: int
    has_labels: bool
    labels: tuple[str, ...] | None
    notes: tuple[str, ...]
    _calibration: tuple[Rows, np.ndarray] | None = field(repr=False)
    _evaluation: tuple[Rows, np.ndarray] | None = field(repr=False)
    n_training: int = 0
    training_has_labels: bool = False
    _training: tuple[Rows, np.ndarray] | None = field(default=None, repr=False)

    def calibration(self, batch_size: int) -> Iterator[Inputs]:
        """Batches of inputs, checked, in the dtypes of the model.

        Raises:
            UsageError: a batch does not fit the model.
        """
        for inputs, _ in self._read(self._calibration, batch_size):
            yield inputs

    def evaluation(self, batch_size: int) -> Iterator[Batch]:
        """Batches of (inputs, labels or None), checked.

        Raises:
            UsageError: a batch does not fit the model.
        """
        yield from self._read(self._evaluation, batch_size)

    def training(self, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
        """Batches of (inputs, labels or None) to train on, checked, in an order of your own.

        Args:
            order: numbers from 0 to `n_training` − 1, each at most once. A source that can be read in its own order
                only is shuffled by this order within windows of some thousand samples.
            batch_size: of all batches but the last one.

        Raises:
            UsageError: a batch does not fit the model.
        """
        if self._training is None:
            return
        rows, numbers = self._training
        chosen = numbers[order]
        if rows.any_order:
            yield from self._read((rows, chosen), batch_size)
            return
        for raw, labels in in_windows(rows, chosen, batch_size):
            ready = _prepared(raw, self.inputs, self.preprocessing)
            yield check_batch(ready, self.inputs, rows.where, "sample {} of a shuffled batch".format), labels

    @cached_property
    def training_sha256(self) -> str:
        """Of the training samples and labels before preprocessing; "" without any."""
        if self._training is None:
            return ""
        rows, numbers = self._training
        return rows.digest(np.sort(numbers))

    def evaluation_name(self, sample: int) -> str:
        """What the user calls the evaluation sample of this number, counted over all batches.

        Returns:
            "row 300" of an array, the path of an image in its folder.
        """
        assert self._evaluation is not None
        return _name(*self._evaluation, sample)

    @cached_property
    def calibration_sha256(self) -> str:
        """Of the calibration inputs as the model sees them; "" without data."""
        if not self.real:
            return ""
        digest = hashlib.sha256()
        for batch in self.calibration(_SCAN):
            for value in batch:
                digest.update(f"{value.dtype}{value.shape[1:]}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def _read(self, part: tuple[Rows, np.ndarray] | None, batch_size: int) -> Iterator[Batch]:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        if part is None:
            return
        rows, order = part
        seen = 0
        for raw, labels in rows.batches(order, batch_size):
            ready = _prepared(raw, self.inputs, self.preprocessing)
            name = partial(_name, rows, order[seen:])
            yield check_batch(ready, self.inputs, rows.where, name), labels
            seen += len(ready[0])


def _name(rows: Rows, order: np.ndarray, sample: int) -> str:
    return rows.name(int(order[sample]))


def _prepared(raw: Inputs, inputs: tuple[TensorInfo, ...], preprocessing: Preprocessing | None) -> Inputs:
    """Images of uint8, or in the other layout, through the recipe; what is ready passes through."""
    if preprocessing is None:
        return raw
    return tuple(
        _image(value, info, preprocessing) if len(info.shape) == 4 and value.ndim == 4 else value
        for value, info in zip(raw, inputs, strict=True)
    )


def _image(value: np.ndarray, info: TensorInfo, preprocessing: Preprocessing) -> np.ndarray:
    channels = info.shape[1 if preprocessing.layout == "NCHW" else 3]
    first = value.shape[1] == channels and (value.shape[3] != channels or preprocessing.layout == "NCHW")
    return preprocessing.normalize(value, channels_last=not first)


def open_data(
    spec: Spec,
    *,
    inputs: Sequence[TensorInfo],
    preprocessing: Preprocessing | None,
    seed: int,
    calibration_size: int = 256,
    training: bool | None = False,
) -> Data:
    """Open data of any kind and set calibration, training and evaluation apart.

    Args:
        spec: an `.npz`, a folder of class folders of images, "module:callable"; or in Python a dict of
            arrays, a tuple `(x,)` or `(x, y)`, a list of batches, an iterable that can be iterated again, a
            callable that gives one; None for no data.
        inputs: of the model.
        preprocessing: for images; None takes arrays as they are and assumes the usual for folders.
        seed: decides which samples calibrate.
        calibration_size: at most so many samples calibrate.
        training: samples to train on are wanted: those that the source names as such, else, of one set only, four
            in five of its samples. None takes them only where the source names some.

    Returns:
        The data; with one set only, no sample is measured that calibrates or is trained on.

    Raises:
        UsageError: it cannot be read, is empty, or does not fit the model; or an evaluation set is all that there
            is to train on.
    """
    wanted = tuple(inputs)
    if calibration_size < 1:
        raise UsageError(
            f"calibration_size is {calibration_size}", expected="at least 1", way_out="Ask for 128 or more."
        )
    if spec is None:
        note = "no data was given: nothing was measured on real data"
        return Data(wanted, preprocessing, False, 0, 0, False, None, (note,), None, None)
    notes: tuple[str, ...] = ()
    if isinstance(spec, (str, Path)) and Path(spec).is_dir() and preprocessing is None:
        preprocessing, note = default_for(_image_input(wanted).shape)
        notes = (note,)
    sets = _open(spec, wanted, preprocessing)
    training = sets.training is not None if training is None else training
    calibration, evaluation, trained, more = _set_apart(sets, seed, calibration_size, training=training)
    notes += sets.notes + more
    data = Data(
        inputs=wanted,
        preprocessing=preprocessing,
        real=True,
        n_calibration=len(calibration[1]),
        n_evaluation=len(evaluation[1]),
        has_labels=evaluation[0].has_labels,
        labels=sets.labels,
        notes=notes,
        _calibration=calibration,
        _evaluation=evaluation,
        n_training=0 if trained is None else len(trained[1]),
        training_has_labels=trained is not None and trained[0].has_labels,
        _training=trained,
    )
    _scan(data)
    return data


def _open(spec: Any, inputs: tuple[TensorInfo, ...], preprocessing: Preprocessing | None) -> Sets:
    if isinstance(spec, Mapping):
        return sets_of(spec, inputs, "data")
    if isinstance(spec, (str, Path)):
        return _open_path(spec, inputs, preprocessing)
    if isinstance(spec, tuple) and 1 <= len(spec) <= 2 and all(hasattr(v, "__array__") for v in spec):
        return sets_of(dict(zip(("x", "y"), spec, strict=False)), inputs, "data")
    if hasattr(spec, "__array__"):
        return sets_of({"x": spec}, inputs, "data")
    if callable(spec):
        return open_stream(spec, inputs, getattr(spec, "__name__", "data"))
    if hasattr(spec, "__iter__") and not hasattr(spec, "__next__"):
        return open_stream(lambda: spec, inputs, type(spec).__name__)
    raise UsageError(
        f"data is a {type(spec).__name__}",
        expected="a path, a dict of arrays, (x, y), batches that can be iterated again, or a callable",
        way_out="Wrap a generator into a function without arguments and pass the function.",
    )


def _open_path(spec: str | Path, inputs: tuple[TensorInfo, ...], preprocessing: Preprocessing | None) -> Sets:
    path = Path(spec)
    if path.is_dir():
        assert preprocessing is not None
        return open_folder(path, _image_input(inputs), preprocessing)
    if path.is_file():
        return open_npz(path, inputs)
    if ":" in str(spec):
        return open_stream(user_source(str(spec)), inputs, str(spec))
    raise UsageError(
        f"{spec}: no such file or folder",
        expected="an .npz, a folder of class folders of images, or module:callable",
        way_out="Check the path.",
    )


def _image_input(inputs: tuple[TensorInfo, ...]) -> TensorInfo:
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise UsageError(
            f"the model takes {', '.join(f'{i.name} {i.shape}' for i in inputs)}",
            expected="one image input, for a folder of images",
            way_out="Pass the inputs as an .npz, or as module:callable.",
        )
    return inputs[0]


Part = tuple[Rows, np.ndarray]


def _set_apart(
    sets: Sets, seed: int, size: int, *, training: bool
) -> tuple[Part, Part, Part | None, tuple[str, ...]]:
    """Choose the rows: which calibrate, which are measured, which are trained on."""
    for rows in (sets.evaluation, sets.calibration, sets.training):
        if rows is not None and rows.count == 0:
            raise UsageError(f"{rows.where}: no samples", expected="at least one", way_out="Check the data.")
    random = np.random.default_rng(seed)
    everything = np.arange(sets.evaluation.count)
    if sets.calibration is not None:
        count = sets.calibration.count
        order = np.sort(random.permutation(count)[: min(size, count)])
        shared = sets.calibration.prints(order) & sets.evaluation.prints(everything)
        note = f"{len(shared)} of {len(order)} calibration samples are in the evaluation set, too"
        trained, more = _to_train_on(sets) if training else (None, ())
        notes = ((note,) if shared else ()) + more
        return (sets.calibration, order), (sets.evaluation, everything), trained, notes
    if sets.evaluation.count == 1:
        only = "there is one sample only: it calibrates and is measured"
        return (sets.evaluation, everything), (sets.evaluation, everything), None, (only,)
    shuffled = random.permutation(sets.evaluation.count)
    if training and sets.held_out:
        raise UsageError(
            f"{sets.evaluation.where}: there is nothing to train on but the evaluation set",
            expected="other samples, as figures on what was trained on say nothing",
            way_out="Add train_x (labels help, and are not needed), or name the set x to have it shared out.",
        )
    if training:
        return _share_out(sets.evaluation, shuffled, size)
    count = min(size, sets.evaluation.count // 2)
    return (
        (sets.evaluation, np.sort(shuffled[:count])),
        (sets.evaluation, np.sort(shuffled[count:])),
        None,
        (),
    )


def _to_train_on(sets: Sets) -> tuple[Part, tuple[str, ...]]:
    """The training set; where there is none, all of the calibration set."""
    if sets.training is not None:
        return (sets.training, np.arange(sets.training.count)), ()
    assert sets.calibration is not None
    note = f"there is no training set: the {sets.calibration.count} samples for calibration are trained on"
    return (sets.calibration, np.arange(sets.calibration.count)), (note,)


def _share_out(rows: Rows, shuffled: np.ndarray, size: int) -> tuple[Part, Part, Part, tuple[str, ...]]:
    """One set for everything: a fifth is measured, the rest is trained on, and some of that calibrates."""
    count = max(1, len(shuffled) // 5)
    measured, trained = np.sort(shuffled[:count]), np.sort(shuffled[count:])
    note = f"of {rows.count} samples, {len(trained)} were taken for training and {count} to measure on"
    return (rows, np.sort(shuffled[count:][:size])), (rows, measured), (rows, trained), (note,)


def _scan(data: Data) -> None:
    """One pass now, so that a bad sample is named before minutes of work and not after."""
    for _ in data.calibration(_SCAN):
        pass
    rows, order = data._evaluation or (None, np.arange(0))
    if rows is not None and data.preprocessing is None:
        for _ in data.evaluation(_SCAN):
            pass
    elif rows is not None and len(order):
        next(iter(data.evaluation(1)))
