"""The table of layer latencies: shapes, the grid, what is read between its points, the files and what is kept."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cleanup_programs import program_of
from edgekit.bench import onnx_ops, runner, tflite_ops
from edgekit.bench.layers import (
    LatencyModel,
    LayerShape,
    default_store,
    grid_of,
    latency_model,
    measure,
    measure_layers,
)
from edgekit.bench.layers.grid import Axis, axis
from edgekit.bench.layers.measure import copies_of
from edgekit.bench.layers.onnx_file import as_exported, onnx_file
from edgekit.bench.layers.store import Kept, keep, load, machine_key, name_of
from edgekit.bench.layers.tflite_file import tflite_file
from edgekit.errors import UsageError
from edgekit.stages.quantize.apply import convert
from quantized_programs import calibrated

CONV = LayerShape("conv2d", 16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8))
DEPTHWISE = LayerShape("conv2d", 80, 80, (3, 3), (2, 2), (1, 1), (1, 1), 80, (8, 8))
GROUPED = LayerShape("conv2d", 32, 64, (3, 3), (1, 1), (1, 1), (1, 1), 4, (8, 8))
LINEAR = LayerShape("linear", 64, 10, size=(3,))
EVERY_KIND = (
    CONV,
    DEPTHWISE,
    GROUPED,
    LINEAR,
    replace(CONV, dilation=(2, 2), padding=(2, 2)),
    replace(CONV, stride=(2, 2), padding=(0, 1, 1, 2)),
    LayerShape("conv2d", 3, 16, (3, 3), (2, 2), (1, 1), (1, 1), 1, (8, 8)),
    LayerShape("conv1d", 16, 24, (5,), (2,), (1,), (2,), 1, (20,)),
    LayerShape("conv1d", 16, 32, (5,), (1,), (1,), (2,), 16, (20,)),
    LayerShape("conv_transpose2d", 8, 16, (2, 2), (2, 2), (1, 1), (0, 0), 1, (4, 4)),
    LayerShape("conv_transpose1d", 8, 16, (4,), (2,), (1,), (0,), 1, (6,)),
)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"op": "conv3d"}, "conv3d"),
        ({"kernel": (3,)}, "expected 2 numbers"),
        ({"padding": (1, 1, 1)}, "expected 2 numbers"),
        ({"in_channels": 0}, "at least 1"),
        ({"padding": (-1, 0)}, "at least 0"),
        ({"groups": 3}, "multiples of the 3 groups"),
        ({"size": (0, 8)}, "at least 1"),
        ({"kernel": (11, 3)}, "larger than the padded input"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CONV, **fields)


def test_sizes_and_work_follow_from_the_shape() -> None:
    assert CONV.output_size == (8, 8)
    assert CONV.macs == 64 * 9 * 16 * 32
    assert DEPTHWISE.output_size == (4, 4)
    assert DEPTHWISE.macs == 16 * 9 * 80
    assert replace(CONV, padding=(0, 1, 1, 2), stride=(2, 2)).output_size == (4, 5)
    up = LayerShape("conv_transpose2d", 8, 16, (2, 2), (2, 2), (1, 1), (0, 0), 1, (4, 4))
    assert up.output_size == (8, 8)
    assert up.macs == 16 * 4 * 8 * 16
    assert LINEAR.macs == 3 * 64 * 10


def test_the_groups_of_a_depthwise_layer_follow_its_channels() -> None:
    assert DEPTHWISE.with_channels(24, 24).groups == 24
    assert GROUPED.with_channels(16, 32).groups == 4
    assert DEPTHWISE.with_channels(24, 24).family() == DEPTHWISE.family()
    assert DEPTHWISE.family() != replace(DEPTHWISE, groups=1).family()


def test_padding_may_be_spelled_in_two_ways() -> None:
    other = replace(CONV, padding=(1, 1, 1, 1))
    assert other.family() == CONV.family()
    assert name_of(other) == name_of(CONV)


@given(count=st.integers(1, 3000), by_block=st.booleans(), step=st.sampled_from([8, 16, 24, 32]))
def test_the_levels_of_an_axis_end_with_the_original(count: int, by_block: bool, step: int) -> None:
    found = axis(count, sorted_by_block=by_block, step=step)
    assert list(found.levels) == sorted(set(found.levels))
    assert found.levels[-1] == count
    assert all(n % step == 0 for n in found.levels[:-1])
    assert len(found.levels) <= 36


@given(data=st.data(), count=st.integers(1, 3000), by_block=st.booleans())
def test_measured_counts_stand_on_both_sides(data: st.DataObject, count: int, by_block: bool) -> None:
    found = axis(count, sorted_by_block=by_block)
    asked = data.draw(st.integers(1, count))
    low, high, weight = found.between(asked)
    assert {low, high} <= set(found.levels)
    assert 0 <= weight < 1
    rounded = min(-(-asked // 8) * 8, count)
    if asked in found.levels:
        assert (low, high) == (asked, asked)
    else:
        assert low + (high - low) * weight == pytest.approx(rounded)
    if by_block and low != high:
        assert (low % 16 == 0) == (high % 16 == 0) == (rounded % 16 == 0)


def test_small_layers_are_measured_at_every_multiple_of_eight() -> None:
    assert axis(64, sorted_by_block=True).levels == tuple(range(8, 65, 8))
    assert axis(20, sorted_by_block=True).levels == (8, 16, 20)
    assert axis(3, sorted_by_block=True).levels == (3,)
    assert axis(8, sorted_by_block=False) == Axis((8,), sorted_by_block=False)


def test_a_grid_has_the_narrowest_and_the_original() -> None:
    grid = grid_of(CONV)
    assert grid[0] == CONV.with_channels(8, 8)
    assert grid[-1] == CONV
    assert len(grid) == 2 * 4
    assert all(point.groups == point.in_channels for point in grid_of(DEPTHWISE))
    assert {point.in_channels for point in grid_of(GROUPED)} == {8, 16, 24, 32}


def staircase(shape: LayerShape) -> float:
    """Kernels that make 16 results at once, and dislike what is left over."""
    blocks = math.ceil(shape.out_channels / 16)
    left_over = 0.3 if shape.out_channels % 16 else 0.0
    return 0.1 + 0.01 * shape.in_channels * (blocks + left_over)


def model_of(*originals: LayerShape, ms: Callable[[LayerShape], float] = staircase) -> LatencyModel:
    return LatencyModel(originals, {p: ms(p) for shape in originals for p in grid_of(shape)})


@given(inputs=st.integers(1, 40), outputs=st.integers(1, 60))
@settings(deadline=None)
def test_stairs_are_met_between_the_measured_points(inputs: int, outputs: int) -> None:
    asked = replace(CONV, in_channels=inputs * 8, out_channels=outputs * 8)
    model = model_of(replace(CONV, in_channels=320, out_channels=480))
    assert model.ms(asked) == pytest.approx(staircase(asked), rel=1e-6)


def test_a_count_off_the_grid_is_answered_like_the_next_multiple() -> None:
    model = model_of(replace(CONV, in_channels=64, out_channels=64))
    assert model.ms(replace(CONV, in_channels=33, out_channels=17)) == pytest.approx(
        model.ms(replace(CONV, in_channels=40, out_channels=24))
    )


def test_a_depthwise_layer_is_read_along_its_own_sort() -> None:
    wide = replace(DEPTHWISE, in_channels=480, out_channels=480, groups=480)

    def ms(shape: LayerShape) -> float:
        return shape.in_channels * (1.0 if shape.in_channels % 16 == 0 else 2.5)

    model = model_of(wide, ms=ms)
    for n in range(8, 481, 8):
        assert model.ms(wide.with_channels(n, n)) == pytest.approx(n * (1.0 if n % 16 == 0 else 2.5))


def test_measured_points_are_answered_as_measured() -> None:
    extra = CONV.with_channels(9, 11)
    model = LatencyModel((CONV,), {**model_of(CONV).points, extra: 7.0})
    assert model.ms(extra) == 7.0
    assert model.ms(CONV) == staircase(CONV)


def test_the_smallest_original_that_is_wide_enough_answers() -> None:
    narrow, broad = (
        replace(CONV, in_channels=3, out_channels=64),
        replace(CONV, in_channels=64, out_channels=64),
    )
    model = model_of(broad, narrow)
    assert model.ms(narrow.with_channels(3, 40)) == pytest.approx(staircase(narrow.with_channels(3, 40)))
    assert model.ms(broad.with_channels(40, 24)) == pytest.approx(staircase(broad.with_channels(40, 24)))


@pytest.mark.parametrize(
    "asked", [replace(CONV, in_channels=24), replace(CONV, stride=(2, 2)), replace(CONV, size=(9, 8)), LINEAR]
)
def test_a_layer_that_no_original_covers_is_refused(asked: LayerShape) -> None:
    with pytest.raises(ValueError, match="expected a layer that one of the 1 originals covers"):
        model_of(CONV).ms(asked)


def test_a_model_with_a_missing_point_is_refused() -> None:
    points = dict(model_of(CONV).points)
    del points[CONV.with_channels(8, 24)]
    with pytest.raises(ValueError, match="1 of the points"):
        LatencyModel((CONV,), points)


@pytest.mark.parametrize("shape", EVERY_KIND, ids=name_of)
def test_files_run_and_have_the_shapes_of_the_layer(shape: LayerShape, tmp_path: Path) -> None:
    import onnxruntime

    (tmp_path / "layer.onnx").write_bytes(onnx_file(shape, 2))
    (tmp_path / "layer.tflite").write_bytes(tflite_file(shape, 2))
    runner(tmp_path / "layer.onnx")()
    runner(tmp_path / "layer.tflite")()
    session = onnxruntime.InferenceSession(str(tmp_path / "layer.onnx"), providers=["CPUExecutionProvider"])
    rows = (3,) if shape.op == "linear" else (1, *shape.output_size)
    assert [tuple(y.shape) for y in session.get_outputs()] == [(*rows, shape.out_channels)] * 2


@pytest.mark.parametrize("shape", [s for s in EVERY_KIND if not s.transposed], ids=name_of)
def test_layers_run_in_integers_and_nothing_stands_beside_them(shape: LayerShape, tmp_path: Path) -> None:
    (tmp_path / "layer.onnx").write_bytes(onnx_file(shape, 3))
    (tmp_path / "layer.tflite").write_bytes(tflite_file(shape, 3))
    onnx, tflite = onnx_ops(tmp_path / "layer.onnx"), tflite_ops(tmp_path / "layer.tflite")
    assert onnx.int8 == {"QGemm" if shape.op == "linear" else "QLinearConv": 3}
    assert not onnx.floating
    assert not onnx.boundary
    assert set(tflite.int8.values()) == {3}
    assert not tflite.floating
    assert not tflite.boundary
    assert tflite.partitions == 1
    assert not tflite.outside


class Mobile(nn.Module):
    """A convolution, a strided depthwise one, one on pixels and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=32)
        self.last, self.linear = nn.Conv2d(32, 24, 1), nn.Linear(24 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        return self.linear(torch.flatten(self.last(x), 1))


MOBILE = (
    CONV,
    LayerShape("conv2d", 32, 32, (3, 3), (2, 2), (1, 1), (1, 1), 32, (8, 8)),
    LayerShape("conv2d", 32, 24, (1, 1), (1, 1), (1, 1), (0, 0), 1, (4, 4)),
    LayerShape("linear", 24 * 16, 10),
)


@pytest.mark.slow
def test_files_have_the_kernels_of_an_exported_network(tmp_path: Path) -> None:
    from edgekit_converters.cleanup import clean
    from edgekit_converters.onnx import export_onnx
    from edgekit_converters.tflite import export_tflite

    quantized = convert(calibrated(clean(program_of(Mobile(), (torch.zeros(1, 16, 8, 8),), dynamic=True))[0]))
    export_onnx(quantized, tmp_path / "model.onnx")
    export_tflite(quantized, tmp_path / "model.tflite", layout="nhwc")
    onnx, tflite = Counter[str](), Counter[str]()
    for shape in MOBILE:
        (tmp_path / "layer.onnx").write_bytes(onnx_file(shape, 1))
        (tmp_path / "layer.tflite").write_bytes(tflite_file(shape, 1))
        onnx += onnx_ops(tmp_path / "layer.onnx").int8
        tflite += tflite_ops(tmp_path / "layer.tflite").int8
    network = onnx_ops(tmp_path / "model.onnx").int8
    assert {op: n for op, n in network.items() if op.startswith("Q")} == onnx
    movers = {"RESHAPE", "TRANSPOSE"}
    assert {
        op: n for op, n in tflite_ops(tmp_path / "model.tflite").int8.items() if op not in movers
    } == tflite


def test_copies_differ_so_that_no_runtime_joins_them(tmp_path: Path) -> None:
    import onnxruntime

    (tmp_path / "layer.onnx").write_bytes(onnx_file(CONV, 2))
    session = onnxruntime.InferenceSession(str(tmp_path / "layer.onnx"), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 16), dtype=np.uint8)
    first, second = session.run(None, {"x": x})
    assert (first != second).mean() > 0.5


def test_the_strided_layer_on_the_image_is_measured_as_it_is_exported() -> None:
    stem = LayerShape("conv2d", 3, 16, (3, 3), (2, 2), (1, 1), (1, 1), 1, (32, 32))
    blocks = as_exported(stem)
    assert (blocks.in_channels, blocks.stride, blocks.output_size) == (12, (1, 1), stem.output_size)
    assert as_exported(CONV) is CONV


def test_large_layers_stand_alone_and_small_ones_in_company() -> None:
    assert copies_of(replace(CONV, in_channels=512, out_channels=512, size=(28, 28))) == 1
    assert copies_of(CONV.with_channels(8, 8)) > 5


@pytest.mark.parametrize("runtime", ["onnx", "tflite"])
def test_more_work_takes_longer_in_both_runtimes(runtime: str) -> None:
    small = CONV.with_channels(16, 16)
    large = replace(CONV, in_channels=128, out_channels=128)
    found = measure_layers([large, small, large], runtime)
    assert set(found) == {large, small}
    assert 0 < found[small] < found[large]


def test_the_same_machine_gives_the_same_answers_again(tmp_path: Path) -> None:
    store = tmp_path / "käse" / "layers.json"
    lines: list[str] = []
    first = latency_model([LINEAR], "onnx", store=store, step=lines.append)
    before = store.read_bytes()
    second = latency_model([LINEAR], "onnx", store=store)
    assert second.points == first.points
    assert store.read_bytes() == before
    assert lines == [f"layer latencies in ONNX Runtime · 0 of {len(grid_of(LINEAR))}"]


def test_only_what_is_missing_is_measured(tmp_path: Path) -> None:
    store, key = tmp_path / "layers.json", machine_key("onnx")
    keep(store, key, Kept(0.01, {name_of(LINEAR): 123.0}))
    found = measure_layers([LINEAR, CONV], "onnx", store=store)
    assert found[LINEAR] == 123.0
    assert found[CONV] < 123.0
    assert set(load(store, key).points) == {name_of(LINEAR), name_of(CONV)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"format": 1}',
        b'{"format": 99, "machines": {}}',
        b'{"format": 1, "machines": []}',
        b"[" * 100_000,
    ],
    ids=["empty", "no text", "list", "null", "half", "newer", "wrong", "deep"],
)
def test_a_file_that_is_none_counts_as_nothing_known(content: bytes, tmp_path: Path) -> None:
    store = tmp_path / "layers.json"
    store.write_bytes(content)
    assert load(store, "k") == Kept()
    keep(store, "k", Kept(0.5, {"a": 1.0}))
    assert load(store, "k") == Kept(0.5, {"a": 1.0})


def test_single_values_that_are_no_times_are_left_out(tmp_path: Path) -> None:
    store = tmp_path / "layers.json"
    points = {"good": 1.5, "nan": math.nan, "zero": 0.0, "text": "1.0", "none": None, "true": True}
    record = {"yardstick_ms": -1.0, "points": points}
    store.write_text(json.dumps({"format": 1, "machines": {"k": record, "other": 3}}), encoding="utf-8")
    assert load(store, "k") == Kept(None, {"good": 1.5})
    assert load(store, "other") == Kept()


def test_what_is_kept_stays_and_other_machines_too(tmp_path: Path) -> None:
    store = tmp_path / "layers.json"
    keep(store, "mine", Kept(2.0, {"a": 1.0}))
    keep(store, "theirs", Kept(3.0, {"a": 9.0}))
    merged = keep(store, "mine", Kept(1.0, {"a": 5.0, "b": 2.0}))
    assert merged == load(store, "mine") == Kept(1.0, {"a": 1.0, "b": 2.0})
    assert load(store, "theirs") == Kept(3.0, {"a": 9.0})
    assert [path.name for path in tmp_path.iterdir()] == ["layers.json"]


def test_a_place_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    found = measure_layers([LINEAR], "onnx", store=blocked / "below" / "layers.json")
    assert found[LINEAR] > 0
    assert blocked.read_text(encoding="utf-8") == "in the way"
    (tmp_path / "layers.json").mkdir()
    assert keep(tmp_path / "layers.json", "k", Kept(1.0, {"a": 1.0})) == Kept(1.0, {"a": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "layers.json"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_no_obstacle(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert keep(tmp_path / "layers.json", "k", Kept(1.0, {"a": 1.0})) == Kept(1.0, {"a": 1.0})


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "own"))
    assert default_store() == tmp_path / "own" / "layers.json"
    monkeypatch.delenv("EDGEKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_store() == tmp_path / "xdg" / "edgekit" / "layers.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_store() == tmp_path / ".cache" / "edgekit" / "layers.json"


def test_runtimes_are_kept_apart_and_unknown_ones_refused() -> None:
    assert machine_key("onnx") != machine_key("tflite")
    assert machine_key("onnx") == machine_key("onnx")
    with pytest.raises(UsageError, match="expected: onnx or tflite"):
        measure_layers([CONV], "coreml")


def test_a_batch_from_a_busy_moment_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[int, float | None]] = []
    answers = iter(
        [measure._Batch((5.0, 6.0), 0.02), measure._Batch((1.0,), 0.01), measure._Batch((3.0, 7.0), 0.01)]
    )

    def measured(shapes: Sequence[LayerShape], runtime: str, best_ms: float | None) -> measure._Batch:
        asked.append((len(shapes), best_ms))
        return next(answers)

    monkeypatch.setattr(measure, "_measure", measured)
    monkeypatch.setattr(measure, "BATCH", 2)
    shapes = [CONV.with_channels(n, 8) for n in (8, 16, 24)]
    found = measure_layers(shapes, "onnx", store=tmp_path / "layers.json")
    assert asked == [(2, None), (1, 0.02), (2, 0.01)]
    assert list(found.values()) == [3.0, 6.0, 1.0]
    assert load(tmp_path / "layers.json", machine_key("onnx")).yardstick_ms == 0.01


def test_a_layer_that_a_format_does_not_have_is_named() -> None:
    up = LayerShape("conv_transpose2d", 8, 16, (2, 2), (2, 2), (1, 1), (0, 0), 4, (4, 4))
    with pytest.raises(UsageError, match="a transposed convolution that TFLite does not have"):
        measure_layers([up], "tflite")


def test_nothing_asked_is_nothing_measured(tmp_path: Path) -> None:
    assert measure_layers([], "onnx", store=tmp_path / "layers.json") == {}
    assert not list(tmp_path.iterdir())


@given(
    first=st.tuples(*[st.integers(1, 40)] * 2),
    second=st.tuples(*[st.integers(1, 40)] * 2),
    size=st.integers(1, 30),
)
def test_different_layers_have_different_names(
    first: tuple[int, int], second: tuple[int, int], size: int
) -> None:
    one, other = (LayerShape("linear", *channels, size=(size,)) for channels in (first, second))
    assert (name_of(one) == name_of(other)) == (one == other)
