"""Data of every kind comes out as checked batches, with calibration and evaluation set apart."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgekit.data import Data, Preprocessing, check_labels, check_range, open_data
from edgekit.errors import UsageError
from edgekit.load import load_candidate
from edgekit_converters.program import TensorInfo

FLAT = (TensorInfo("x", (1, 3), "float32"),)
IMAGE = (TensorInfo("image", (1, 3, 4, 6), "float32"),)
TOKENS = (TensorInfo("tokens", (1, 5), "int64"),)
PAIR = (TensorInfo("image", (1, 1, 2, 2), "float32"), TensorInfo("meta", (1, 3), "float32"))


def numbered(n: int) -> np.ndarray:
    """Row i holds i, i + 0.25, i + 0.5: rows tell which they are."""
    return (np.arange(n)[:, None] + np.array([0, 0.25, 0.5])).astype(np.float32)


def opened(spec, inputs=FLAT, preprocessing=None, seed=0, **more) -> Data:
    return open_data(spec, inputs=inputs, preprocessing=preprocessing, seed=seed, **more)


def calibration_rows(data: Data) -> list[int]:
    return [int(row[0]) for (batch,) in data.calibration(4) for row in batch]


def evaluation_rows(data: Data) -> list[int]:
    return [int(row[0]) for (batch,), _ in data.evaluation(4) for row in batch]


def refused(words: str, spec, **options) -> UsageError:
    with pytest.raises(UsageError, match=words) as caught:
        list(opened(spec, **options).evaluation(8))
    return caught.value


@given(st.integers(2, 60), st.integers(1, 80), st.integers(0, 2**31))
def test_one_set_is_split_without_overlap_and_by_the_seed_alone(n, size, seed):
    data = opened({"x": numbered(n)}, seed=seed, calibration_size=size)
    first, second = calibration_rows(data), evaluation_rows(data)
    assert sorted(first + second) == list(range(n))
    assert 1 <= len(first) == data.n_calibration <= size
    assert len(second) == data.n_evaluation
    again = opened({"x": numbered(n)}, seed=seed, calibration_size=size)
    assert (calibration_rows(again), again.calibration_sha256) == (first, data.calibration_sha256)


def test_another_seed_calibrates_with_other_rows():
    x = numbered(64)
    assert calibration_rows(opened({"x": x}, seed=1)) != calibration_rows(opened({"x": x}, seed=2))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_gives_its_rows_and_labels(tmp_path, save):
    path = tmp_path / "dätä.npz"
    save(path, x=numbered(10), y=np.arange(10))
    data = opened(path)
    assert data.real
    assert data.has_labels
    for (batch,), labels in data.evaluation(3):
        assert batch.dtype == np.float32
        assert labels.tolist() == batch[:, 0].astype(int).tolist()
    assert sorted(calibration_rows(data) + evaluation_rows(data)) == list(range(10))


def test_a_plain_npz_stays_on_disk(tmp_path):
    import zipfile

    from edgekit.data.npz import _member

    np.savez(tmp_path / "d.npz", x=np.asfortranarray(numbered(5)), e=np.zeros((0, 3)))
    with zipfile.ZipFile(tmp_path / "d.npz") as archive:
        mapped = _member(tmp_path / "d.npz", archive, archive.getinfo("x.npy"))
        empty = _member(tmp_path / "d.npz", archive, archive.getinfo("e.npy"))
    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped, numbered(5))
    assert empty.shape == (0, 3)


def test_named_sets_are_used_as_named():
    x = numbered(30)
    data = opened({"train_x": x[:10], "train_y": np.zeros(10), "eval_x": x[10:], "eval_y": np.arange(20)})
    assert calibration_rows(data) == list(range(10))
    assert evaluation_rows(data) == list(range(10, 30))
    assert data.notes == ()
    data = opened({"calib_x": x[:4], "x": x[20:], "y": np.arange(10)})
    assert (calibration_rows(data), evaluation_rows(data)) == (list(range(4)), list(range(20, 30)))
    data = opened({"train_x": x})
    assert data.n_calibration + data.n_evaluation == 30


def test_calibration_that_is_in_the_evaluation_set_is_noted():
    x = numbered(8)
    data = opened({"calib_x": x[:4], "eval_x": x})
    assert data.notes == ("4 of 4 calibration samples are in the evaluation set, too",)


def test_one_sample_serves_both_and_says_so():
    data = opened({"x": numbered(1)})
    assert (data.n_calibration, data.n_evaluation) == (1, 1)
    assert "one sample" in data.notes[0]


def test_several_inputs_go_by_name_or_in_order():
    images, meta = np.zeros((6, 1, 2, 2), np.uint8), np.arange(18).reshape(6, 3)
    by_name = opened({"x_image": images, "x_meta": meta, "y": np.arange(6)}, PAIR)
    plain = opened({"image": images, "meta": meta}, PAIR)
    in_order = opened({"x": (images, meta)}, PAIR)
    for data in (by_name, plain, in_order):
        ((a, b), _), *_ = data.evaluation(2)
        assert (a.shape, b.shape, a.dtype, b.dtype) == ((2, 1, 2, 2), (2, 3), np.float32, np.float32)
    assert refused("2: image, meta", {"x": images}, inputs=PAIR)


def test_tuples_arrays_and_torch_tensors_are_taken():
    for spec in (
        (numbered(6), np.arange(6)),
        (numbered(6),),
        numbered(6),
        {"x": torch.from_numpy(numbered(6))},
    ):
        assert opened(spec).n_evaluation == 3


class Batches:
    """Iterates anew each time, like a data loader."""

    def __init__(self, n: int, labelled: bool = True) -> None:
        self.n, self.labelled = n, labelled

    def __iter__(self):
        for start in range(0, self.n, 4):
            x = torch.from_numpy(numbered(self.n)[start : start + 4])
            yield (x, torch.arange(start, start + len(x))) if self.labelled else x


def test_loaders_and_callables_are_streamed_and_split_by_sample():
    for spec in (Batches(11), lambda: iter(Batches(11))):
        data = opened(spec, seed=3)
        assert sorted(calibration_rows(data) + evaluation_rows(data)) == list(range(11))
        assert data.has_labels
        for (batch,), labels in data.evaluation(2):
            assert len(batch) <= 2
            assert labels.tolist() == batch[:, 0].astype(int).tolist()
    assert not opened(Batches(5, labelled=False)).has_labels


def test_two_inputs_and_labels_are_told_apart_in_a_stream():
    def source():
        yield (np.zeros((4, 1, 2, 2)), np.zeros((4, 3)))

    def labelled():
        yield ((np.zeros((4, 1, 2, 2)), np.zeros((4, 3))), np.arange(4))

    assert not opened(source, PAIR).has_labels
    assert opened(labelled, PAIR).has_labels


def test_module_and_callable_come_from_the_current_folder(tmp_path, monkeypatch):
    name = f"user_data_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(
        "import numpy as np\ndef batches():\n    yield np.ones((8, 3)), np.zeros(8, int)\n"
        "def broken():\n    raise OSError('disk gone')\n    yield\n"
    )
    monkeypatch.chdir(tmp_path)
    assert opened(f"{name}:batches").n_evaluation == 4
    assert "disk gone" in refused("disk gone", f"{name}:broken").what
    assert refused("absent", f"{name}:absent")
    assert refused("no_such_module", "no_such_module:f")


def test_a_source_that_changes_between_passes_is_refused():
    sizes = itertools.cycle([8, 6])

    def source():
        yield numbered(next(sizes))

    assert "8 samples on the first pass" in refused("later one", source).what


def test_a_one_shot_iterator_is_refused():
    assert "function" in refused("generator", (x for x in [numbered(4)])).way_out


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_before_the_work(bad):
    x = numbered(40)
    x[17, 1] = bad
    with pytest.raises(UsageError, match="x") as caught:
        opened({"x": x})
    assert "finite" in caught.value.expected


@pytest.mark.parametrize("row", [0, 70, 199])
def test_the_row_of_the_file_is_named_whichever_batch_it_falls_into(tmp_path, row):
    x = numbered(200)
    x[row, 1] = np.nan
    np.savez(tmp_path / "löcher.npz", x=x)
    assert f"löcher.npz (x): input x holds nan in row {row}" in refused("nan", tmp_path / "löcher.npz").what
    assert f"in sample {row} of the stream" in refused("nan", lambda: iter([x[:90], x[90:]])).what
    tokens = np.zeros((200, 5))
    tokens[row, 4] = 0.5
    assert f"holds 0.5 in row {row}," in refused("not whole", {"x": tokens}, inputs=TOKENS).what


def test_a_number_beyond_float32_is_named_as_it_was_saved():
    x = numbered(8).astype(np.float64)
    x[5, 2] = 1e300
    assert "holds 1e+300 in row 5" in refused("x", {"x": x}).what


def test_the_sample_that_was_measured_is_found_again_in_the_file():
    data = opened({"x": numbered(150)})
    read = [row for (batch,), _ in data.evaluation(64) for row in batch]
    assert [data.evaluation_name(i) for i in (0, 65, 74)] == [f"row {int(read[i][0])}" for i in (0, 65, 74)]


def test_layouts_are_named():
    nhwc = np.zeros((4, 4, 6, 3), np.float32)
    error = refused("NHWC", {"x": nhwc}, inputs=IMAGE)
    assert "transpose(0, 3, 1, 2)" in error.way_out
    last = (TensorInfo("image", (1, 4, 6, 3), "float32"),)
    assert "NCHW" in refused("channels first", {"x": np.zeros((4, 3, 4, 6))}, inputs=last).what
    gray = (TensorInfo("image", (1, 1, 4, 6), "float32"),)
    assert "None" in refused("channel axis", {"x": np.zeros((4, 4, 6))}, inputs=gray).way_out
    assert refused("shape", {"x": np.zeros((4, 7))})


def test_a_recipe_turns_uint8_channels_last_into_the_input():
    recipe = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    x = np.full((2, 4, 6, 3), 255, np.uint8)
    data = opened({"x": x}, IMAGE, recipe)
    ((batch,), _), *_ = data.evaluation(1)
    assert batch.shape == (1, 3, 4, 6)
    np.testing.assert_allclose(batch[0, :, 0, 0], [1.0, 0.75, 0.5], rtol=1e-6)


def test_tokens_must_be_whole():
    assert opened({"x": np.zeros((4, 5), np.int32)}, TOKENS).n_evaluation == 2
    assert opened({"x": np.ones((4, 5))}, TOKENS).n_evaluation == 2
    assert refused("not whole", {"x": np.full((4, 5), 0.5)}, inputs=TOKENS)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"x": np.zeros((0, 3))}, "no samples"),
        ({"x": numbered(4), "y": np.arange(3)}, "4, 3 rows"),
        ({"images": numbered(4)}, "images"),
        ({}, "none"),
        ({"x": np.array([["a", "b", "c"]] * 4)}, "type"),
        (3, "int"),
        ("nowhere.npz", "no such file"),
        ([], "no samples"),
    ],
)
def test_unusable_data_says_why(spec, words):
    error = refused(words, spec)
    assert error.expected
    assert error.way_out


def test_pickled_objects_in_an_npz_are_never_loaded(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}, None, 3], dtype=object))
    assert "pickled" in refused("pickled", tmp_path / "d.npz").what


def test_a_damaged_npz_is_refused(tmp_path):
    np.savez(tmp_path / "d.npz", x=numbered(50))
    data = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(data[:-60])
    assert "truncated" in refused("np.savez", tmp_path / "d.npz").what
    (tmp_path / "d.npz").write_text("x,y\n1,2\n")
    assert "cannot be read as .npz" in refused("np.savez", tmp_path / "d.npz").what


def test_a_single_array_is_recognised_and_the_line_that_mends_it_is_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("größe.npy", numbered(6))
    error = refused("a single array", Path("größe.npy"))
    exec(error.way_out.removeprefix("Save it again: ").removesuffix("."), {"np": np})
    assert opened(Path("data.npz")).n_evaluation == 3


def test_no_data_is_said_plainly():
    data = opened(None)
    assert (data.real, data.n_evaluation, data.calibration_sha256) == (False, 0, "")
    assert list(data.calibration(4)) == list(data.evaluation(4)) == []
    assert "nothing was measured on real data" in data.notes[0]


def image_folder(path: Path, classes: dict[str, int], size: tuple[int, int] = (9, 7)) -> Path:
    for value, (name, count) in enumerate(classes.items()):
        (path / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (value * 40, i * 10, 200)).save(path / name / f"bild {i}.png")
    return path


def test_class_folders_give_images_labels_and_names(tmp_path):
    folder = image_folder(tmp_path / "bilder", {"käse": 3, "apfel": 5})
    data = opened(folder, IMAGE)
    assert data.labels == ("apfel", "käse")
    assert data.has_labels
    assert data.n_calibration + data.n_evaluation == 8
    assert "assumption" in data.notes[0]
    assert data.preprocessing is not None
    assert data.preprocessing.resize == (4, 6)
    for (batch,), labels in data.evaluation(2):
        red = batch[:, 0, 0, 0] * 0.229 + 0.485
        np.testing.assert_allclose(red, np.where(labels == 1, 0.0, 40 / 255), atol=1e-3)


def test_train_and_val_folders_stay_what_they_are(tmp_path):
    image_folder(tmp_path / "train", {"a": 4, "b": 4})
    image_folder(tmp_path / "val", {"a": 2, "b": 1})
    data = opened(tmp_path, IMAGE)
    assert (data.n_calibration, data.n_evaluation, data.labels) == (8, 3, ("a", "b"))
    assert "in the evaluation set" in data.notes[-1]


def test_an_image_of_the_wrong_size_or_damaged_is_named(tmp_path):
    folder = image_folder(tmp_path / "f", {"a": 2})
    assert (
        "resize = [4, 6]" in refused("5x5", folder, inputs=IMAGE, preprocessing=Preprocessing(crop=5)).way_out
    )
    (folder / "a" / "bild 0.png").write_bytes(b"no image")
    (folder / "a" / "bild 1.png").write_bytes(b"no image")
    assert "bild" in refused("cannot be read", folder, inputs=IMAGE).what


def test_an_image_whose_numbers_overflow_is_named_in_its_folder(tmp_path):
    folder = image_folder(tmp_path / "f", {"nacht": 70, "tag": 70}, size=(6, 4))
    for file in folder.rglob("*.png"):
        Image.new("RGB", (6, 4)).save(file)
    Image.new("RGB", (6, 4), (0, 255, 0)).save(folder / "tag" / "bild 9.png")
    recipe = Preprocessing(std=(1e-40,))  # black stays 0, the green picture leaves float32
    assert (
        f"holds inf in {Path('tag', 'bild 9.png')}"
        in refused("inf", folder, inputs=IMAGE, preprocessing=recipe).what
    )


def test_an_empty_folder_and_a_model_without_image_are_refused(tmp_path):
    assert refused("no images", tmp_path, inputs=IMAGE)
    assert refused("takes", tmp_path, inputs=FLAT)


def test_geometry_resizes_the_shorter_side_and_crops_the_centre(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = (250, 10, 20)
    Image.fromarray(pixels).save(tmp_path / "i.png")
    plain = Preprocessing(resize=8, crop=8).open_image(str(tmp_path / "i.png"))
    assert plain.shape == (8, 8, 3)
    assert (plain == (250, 10, 20)).all()
    assert Preprocessing(resize=4).open_image(str(tmp_path / "i.png")).shape == (4, 8, 3)
    bgr = Preprocessing(color="BGR", crop=(2, 4)).open_image(str(tmp_path / "i.png"))
    assert bgr.shape == (2, 4, 3)
    assert bgr[0, 0].tolist() == [20, 10, 250]
    assert Preprocessing(color="GRAY").open_image(str(tmp_path / "i.png")).shape == (8, 16, 1)


@pytest.mark.parametrize(
    "table",
    [
        {"sclae": 1}, {"color": "CMYK"}, {"resize": 0}, {"resize": [1, 2, 3]}, {"scale": -1}, {"std": [0.0]},
        {"mean": [1, 2]}, {"layout": "HWC"}, {"filter": "magic"}, {"mean": ["a"]}, {"scale": float("nan")},
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_of_the_recipe_is_named(table):
    with pytest.raises(UsageError) as caught:
        Preprocessing.from_dict(table)
    assert next(iter(table)) in caught.value.what


def test_a_recipe_survives_the_way_through_json():
    import json

    recipe = Preprocessing(resize=(4, 6), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), color="BGR")
    assert Preprocessing.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert Preprocessing.from_dict({"mean": 127, "std": 128, "scale": 1}).mean == (127.0,)


def test_labels_outside_the_classes_are_named():
    check_labels(np.array([0, 9]), 10, "d", str)
    check_labels(np.array([1.0, 2.0]), 3, "d", str)
    for bad in (10, -1, 0.5, np.nan, np.inf):
        with pytest.raises(UsageError, match=f"label {bad} of row 1 is"):
            check_labels(np.array([0, bad, 99]), 10, "d", "row {}".format)


def trained_on(mean: float, deviation: float):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    module.train()
    module[1].momentum = None
    for _ in range(4):
        module(torch.randn(16, 3, 12, 12) * deviation + mean)
    return load_candidate(module, input_shapes=[(1, 3, 12, 12)]).program


def test_data_of_the_wrong_range_is_warned_about_and_right_data_is_not():
    program = trained_on(0.0, 1.0)
    right = np.random.default_rng(0).normal(size=(8, 3, 12, 12)).astype(np.float32)
    assert check_range(program, (right,)) is None
    bytes_ = np.random.default_rng(0).uniform(0, 255, (8, 3, 12, 12)).astype(np.float32)
    warning = check_range(program, (bytes_,))
    assert warning is not None
    assert "scale" in warning
    assert check_range(trained_on(127.0, 70.0), (bytes_,)) is None
    assert check_range(trained_on(127.0, 70.0), (right,)) is not None


def test_without_a_batch_norm_there_is_no_range_to_check():
    program = load_candidate(torch.nn.Linear(3, 2), input_shapes=[(1, 3)]).program
    assert check_range(program, (numbered(4) * 1e6,)) is None


def training_rows(data: Data, order=None, size: int = 4) -> list[int]:
    chosen = np.arange(data.n_training) if order is None else np.asarray(order)
    return [int(row[0]) for (batch,), _ in data.training(chosen, size) for row in batch]


@given(st.integers(2, 60), st.integers(1, 80), st.integers(0, 2**31))
def test_of_one_set_a_fifth_is_measured_and_the_rest_trained_on(n, size, seed):
    x = numbered(n)
    data = opened({"x": x, "y": np.arange(n)}, seed=seed, calibration_size=size, training=True)
    trained, measured = training_rows(data), evaluation_rows(data)
    assert sorted(trained + measured) == list(range(n))
    assert len(measured) == data.n_evaluation == max(1, n // 5)
    assert set(calibration_rows(data)) <= set(trained)
    assert data.n_calibration == min(size, len(trained))
    assert data.training_has_labels
    assert any("taken for training" in note for note in data.notes)
    again = opened({"x": x, "y": np.arange(n)}, seed=seed, calibration_size=size, training=True)
    assert (training_rows(again), again.training_sha256) == (trained, data.training_sha256)


def test_nothing_is_set_apart_for_training_unasked():
    plain, asked = opened({"x": numbered(40)}), opened({"x": numbered(40)}, training=True)
    assert (plain.n_training, list(plain.training(np.arange(0), 4)), plain.training_sha256) == (0, [], "")
    assert plain.n_calibration + plain.n_evaluation == 40
    assert asked.n_training == 32
    assert opened(None, training=True).n_training == 0
    assert opened({"x": numbered(1)}, training=True).n_training == 0


def test_the_training_set_is_used_as_named():
    x = numbered(30)
    arrays = {"train_x": x[:10], "train_y": np.arange(10), "eval_x": x[10:], "eval_y": np.arange(20)}
    data = opened(arrays, training=True, calibration_size=4)
    assert training_rows(data) == list(range(10))
    assert set(calibration_rows(data)) <= set(range(10))
    assert evaluation_rows(data) == list(range(10, 30))
    data = opened({**arrays, "calib_x": x[5:8]}, training=True)
    assert (training_rows(data), calibration_rows(data)) == (list(range(10)), [5, 6, 7])
    data = opened({"train_x": x, "train_y": np.arange(30)}, training=True)
    assert (data.n_training, data.n_evaluation) == (24, 6)


def test_without_a_training_set_the_calibration_set_is_trained_on_and_that_is_said():
    data = opened({"calib_x": numbered(30)[:12], "x": numbered(30)[12:]}, training=True, calibration_size=3)
    assert (data.n_calibration, training_rows(data), data.training_has_labels) == (3, list(range(12)), False)
    assert any("12 samples for calibration are trained on" in note for note in data.notes)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_training_rows_come_in_the_order_that_is_asked_for(tmp_path, save):
    path = tmp_path / "d.npz"
    save(path, train_x=numbered(9), train_y=np.arange(9), eval_x=numbered(9)[:2] + 50)
    data = opened(path, training=True)
    assert training_rows(data, [7, 0, 3, 8], size=3) == [7, 0, 3, 8]
    batches = list(data.training(np.array([7, 0, 3, 8]), 3))
    assert [len(labels) for _, labels in batches] == [3, 1]
    assert batches[0][1].tolist() == [7, 0, 3]


def test_training_samples_are_checked_as_they_are_read():
    x = numbered(12)
    x[9, 1] = np.nan
    data = opened({"train_x": x, "eval_x": numbered(3) + 90}, training=True, calibration_size=1, seed=1)
    with pytest.raises(UsageError, match="row 9"):
        training_rows(data, [3, 9, 1])
    assert training_rows(data, [3, 1]) == [3, 1]


@pytest.mark.parametrize("change", ["x", "y"])
def test_the_hash_of_the_training_set_tells_samples_and_labels_apart(change):
    arrays = {"train_x": numbered(8), "train_y": np.arange(8), "eval_x": numbered(2) + 20}
    before = opened(arrays, training=True).training_sha256
    changed = {**arrays, f"train_{change}": arrays[f"train_{change}"] + 1}
    assert opened(changed, training=True).training_sha256 != before
    assert opened(dict(arrays), training=True).training_sha256 == before


def source_of(n: int, batch: int):
    def source():
        for i in range(0, n, batch):
            yield numbered(n)[i : i + batch], np.arange(n)[i : i + batch]

    return source


@given(st.integers(5, 90), st.integers(1, 20), st.integers(1, 16), st.integers(0, 99))
def test_a_stream_is_shuffled_within_windows_and_gives_full_batches(n, batch, size, seed):
    from edgekit.data import rows

    data = opened(source_of(n, batch), training=True, seed=seed)
    order = np.random.default_rng(seed).permutation(data.n_training)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_WINDOW_ROWS", 16)
        batches = list(data.training(order, size))
        again = training_rows(data, order, size)
    seen = [int(row[0]) for (x,), _ in batches for row in x]
    assert sorted(seen) == training_rows(data)
    assert all(len(labels) == size for _, labels in batches[:-1])
    assert all(x[:, 0].astype(int).tolist() == labels.tolist() for (x,), labels in batches)
    assert again == seen


def test_a_stream_in_one_window_comes_in_the_order_that_is_asked_for():
    data = opened(source_of(40, 7), training=True)
    rows = training_rows(data)
    order = np.random.default_rng(3).permutation(data.n_training)
    assert training_rows(data, order, 8) == [rows[i] for i in order]
    assert training_rows(data, order[:9], 4) == [rows[i] for i in order[:9]]


def test_class_folders_may_have_a_training_folder(tmp_path):
    for part, n in (("Train", 5), ("val", 2), ("calib", 3)):
        for kind in ("ape", "bee"):
            folder = tmp_path / part / kind
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (6, 4), (i, n, 0)).save(folder / f"{i}.png")
    data = opened(tmp_path, IMAGE, training=True)
    assert (data.n_calibration, data.n_evaluation, data.n_training) == (6, 4, 10)
    (images,), labels = next(iter(data.training(np.array([9, 0]), 2)))
    assert images.shape == (2, 3, 4, 6)
    assert labels.tolist() == [1, 0]
    before = data.training_sha256
    Image.new("RGB", (6, 4), (99, 0, 0)).save(tmp_path / "Train" / "ape" / "0.png")
    assert opened(tmp_path, IMAGE, training=True).training_sha256 != before


def test_inputs_carry_the_training_set_where_there_is_one():
    from edgekit.inputs import Training, from_data

    program = load_candidate(torch.nn.Linear(3, 2), input_shapes=[(2, 3)]).program
    inputs = from_data(opened({"x": numbered(20), "y": np.arange(20)}, training=True), program)
    assert (inputs.training.n, inputs.training.has_labels, len(inputs.training.sha256)) == (16, True, 64)
    (x,), y = next(iter(inputs.training.batches(np.array([3, 1]), 2)))
    assert x[:, 0].astype(int).tolist() == y.tolist()
    assert from_data(opened({"x": numbered(20)}), program).training is None
    with pytest.raises(ValueError, match="at least 1"):
        Training(0, False, inputs.training.batches, "")


def test_an_evaluation_set_is_never_trained_on() -> None:
    with pytest.raises(UsageError, match="nothing to train on but the evaluation set") as caught:
        opened({"eval_x": numbered(10), "eval_y": np.arange(10)}, training=True)
    assert "train_x" in str(caught.value)
    assert opened({"eval_x": numbered(10)}).n_training == 0
    assert opened({"calib_x": numbered(4) + 50, "eval_x": numbered(10)}, training=True).n_training == 4
