"""Estimates of latency: operators read from files, rates read between timed ones, intervals from what was missed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bench import onnx_ops, runner, tflite_ops
from edgekit.bench.layers import LayerShape
from edgekit.bench.layers.float_onnx import float_onnx_file
from edgekit.bench.layers.onnx_file import onnx_file
from edgekit.bench.layers.tflite_file import tflite_file
from edgekit.bench.predict import Op, can_predict, estimate, predict, read_ops
from edgekit.bench.predict.calibrate import MANY_LINKS, calibrate, content_of, quicker, to_toml
from edgekit.bench.predict.cores import CORES, class_ms, fastest
from edgekit.bench.predict.intervals import COVERAGE, Residual, evidence, spread
from edgekit.bench.predict.ops import KINDS, PRECISIONS, elementwise, piece, turned, weighted
from edgekit.bench.predict.probe import Probe
from edgekit.bench.predict.probes import layers, probes
from edgekit.bench.predict.process import Process
from edgekit.bench.predict.rates import CROWD, STREAM, Rates
from edgekit.errors import UsageError
from edgekit_devices import Calibration, Cluster, Point, load_profile, names, read_profile

FORMATS = ("onnx", "tflite")
CONV = LayerShape("conv2d", 16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8))
DEPTHWISE = LayerShape("conv2d", 80, 80, (3, 3), (2, 2), (1, 1), (0, 0, 1, 1), 80, (8, 8))
LINEAR = LayerShape("linear", 64, 10, size=(3,))
PREDICTABLE = tuple(name for name in names() if can_predict(load_profile(name)))


def written(folder: Path, shape: LayerShape, format: str, precision: str, copies: int = 2) -> Path:
    floating = precision == "float32"
    contents = {
        "tflite": lambda: tflite_file(shape, copies, floating=floating),
        "onnx": lambda: (float_onnx_file if floating else onnx_file)(shape, copies),
    }
    path = folder / f"layer.{format}"
    path.write_bytes(contents[format]())
    return path


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "kind", "seen"),
    [
        (CONV, "conv", (16, 32, 9, 64)),
        (DEPTHWISE, "depthwise", (1, 80, 9, 16)),
        (LINEAR, "linear", (64, 10, 1, 3)),
    ],
    ids=("conv", "depthwise", "linear"),
)
def test_layers_are_read_as_what_they_are(
    shape: LayerShape, kind: str, seen: tuple[int, ...], format: str, precision: str, tmp_path: Path
) -> None:
    found = [op for op in read_ops(written(tmp_path, shape, format, precision)) if op.kind == kind]
    assert len(found) == 2
    assert {op.precision for op in found} == {precision}
    assert {op.shape for op in found} == {seen}
    assert {op.work for op in found} == {shape.macs}
    size = 1 if precision == "int8" else 4
    assert {op.weight_bytes for op in found} == {shape.macs // seen[3] * size}


def test_conversions_inside_of_integer_groups_are_none(tmp_path: Path) -> None:
    kinds = {op.kind for op in read_ops(written(tmp_path, CONV, "onnx", "int8"))}
    assert "convert" not in kinds


def test_ends_in_float_are_converted_once(tmp_path: Path) -> None:
    probe = next(p for p in probes("onnx", "int8") if p.op.kind == "convert")
    (tmp_path / "chain.onnx").write_bytes(content_of(probe, "onnx"))
    assert [op.kind for op in read_ops(tmp_path / "chain.onnx")] == ["convert"] * 9


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_probe_runs_and_is_read_as_itself(format: str, precision: str, tmp_path: Path) -> None:
    smallest: dict[tuple[str, bool], Probe] = {}
    for probe in probes(format, precision):
        # Sums and products of one tensor are other files than of two, and reductions of rows than across them.
        several = probe.op.kind in ("add", "mul", "collapse") and max(probe.op.outs, probe.op.depth) > 1
        known = smallest.get((probe.op.kind, several))
        if known is None or probe.op.work < known.op.work:
            smallest[probe.op.kind, several] = replace(probe, copies=None)
    path = tmp_path / f"probe.{format}"
    for (kind, _), probe in smallest.items():
        path.write_bytes(content_of(probe, format))
        runner(path)()
        counted = (onnx_ops if format == "onnx" else tflite_ops)(path)
        if (kind, precision) != ("transposed", "int8"):
            # Which LiteRT computes in float in INT8 files, too, but not as in float ones.
            assert not (counted.floating if precision == "int8" else counted.int8), kind
        found = [op for op in read_ops(path) if op.kind == kind]
        assert found, kind
        assert {op.precision for op in found} == {precision}
        if probe.layer is None and kind != "activation":
            assert {(op.work, op.shape) for op in found} == {(probe.op.work, probe.op.shape)}


def test_probes_are_spread_and_of_a_bearable_size() -> None:
    shapes = layers()
    assert len(set(shapes)) == len(shapes) > 100
    assert max(shape.macs for shape in shapes) <= 250_000_000
    for format in FORMATS:
        for precision in PRECISIONS:
            kinds = {probe.op.kind for probe in probes(format, precision)}
            assert kinds <= set(KINDS)
            assert {"conv", "depthwise", "linear", "add"} <= kinds


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.onnx", b"not a model", "an ONNX file"),
        ("m.tflite", b"not a model", "a TFLite file"),
        ("m.tflite", b"\0\0\0\0TFL3" + b"\xff" * 64, "a TFLite file"),
        ("m.mlpackage", b"", r"a \.onnx or \.tflite file"),
        ("m.onnx", None, "a model file"),
    ],
)
def test_what_is_no_model_is_refused(name: str, content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_ops(tmp_path / name)


def rate_of(shape: tuple[int, int, int, int]) -> float:
    """Kernels that like many channels: multiply-accumulates a millisecond."""
    depth, outs, _, positions = shape
    return 1e6 * (1 + math.log2(depth)) * (1 + math.log2(outs)) * (1 + 0.1 * math.log2(positions))


def calibration(op_ms: float = 0.001) -> Calibration:
    shapes = [
        (d, o, t, p) for d in (8, 32, 128, 512) for o in (8, 32, 128, 512) for t in (1, 9) for p in (49, 784)
    ]
    points = tuple(Point("conv", s, math.prod(s), math.prod(s) / rate_of(s) + op_ms) for s in shapes)
    return Calibration("onnx", "int8", 1, 0.004, op_ms, points)


@given(
    depth=st.integers(8, 512),
    outs=st.integers(8, 512),
    taps=st.sampled_from([1, 9]),
    positions=st.integers(49, 784),
)
def test_rates_between_timed_shapes_are_met(depth: int, outs: int, taps: int, positions: int) -> None:
    op = weighted("conv", "int8", (depth, outs, taps, positions))
    expected = op.work / rate_of(op.shape) + 0.001
    assert Rates(calibration()).ms(op) == pytest.approx(expected, rel=0.15)


def test_timed_shapes_are_answered_nearly_as_timed() -> None:
    known = calibration()
    for point in known.points:
        op = weighted("conv", "int8", point.shape)
        assert Rates(known).ms(op) == pytest.approx(point.ms, rel=0.1)


@given(scale=st.integers(1, 10_000))
def test_beyond_all_timed_shapes_the_rate_of_the_edge_holds(scale: int) -> None:
    edge, beyond = (weighted("conv", "int8", (512, 512, 9, 784 * n)) for n in (1, scale))
    rates = Rates(calibration(op_ms=0.0))
    assert rates.ms(beyond) == pytest.approx(rates.ms(edge) * scale)


def test_weights_that_come_from_memory_take_their_time() -> None:
    streams = tuple(Point(STREAM, (1, 1, 1, kb), 2**20, ms) for kb, ms in ((4096, 0.01), (163_840, 0.5)))
    known = calibration()
    rates = Rates(replace(known, points=(*known.points, *streams)))
    op = weighted("conv", "int8", (512, 512, 9, 1))
    assert rates.ms(op, total_bytes=2**20) < rates.ms(op, total_bytes=2**28)
    assert rates.ms(op, total_bytes=2**28) == pytest.approx(0.001 + op.weight_bytes / 2**20 * 0.5)


def test_a_disturbed_time_with_two_threads_is_put_right_by_one_thread() -> None:
    single = calibration(op_ms=0.0)
    halved = [replace(point, ms=point.ms / 1.8) for point in single.points]
    at = len(halved) // 2
    true_ms, op = halved[at].ms, weighted("conv", "int8", halved[at].shape)
    halved[at] = replace(halved[at], ms=1.6 * true_ms)
    both = replace(single, threads=2, points=tuple(halved))
    alone, beside = Rates(both).ms(op), Rates(both, single).ms(op)
    assert beside < alone
    assert beside == pytest.approx(true_ms, rel=0.2)


def test_two_threads_are_no_more_than_twice_as_fast_as_one() -> None:
    single = calibration(op_ms=0.0)
    points = tuple(replace(point, ms=point.ms / 4) for point in single.points)
    both = Rates(replace(single, threads=2, points=points), single)
    for point in single.points[::7]:
        op = weighted("conv", "int8", point.shape)
        assert both.ms(op) == pytest.approx(Rates(single).ms(op) / 2, rel=0.02)


def test_one_thread_says_nothing_where_it_was_timed_on_other_shapes() -> None:
    both = replace(calibration(), threads=2)
    single = replace(both, threads=1, points=both.points[1:])
    op = weighted("conv", "int8", (48, 96, 9, 196))
    assert Rates(both, single).ms(op) == Rates(both).ms(op)


def test_among_many_operators_each_costs_what_it_does_in_a_long_chain() -> None:
    crowds = tuple(Point(CROWD, (1, 1, 1, n), n, ms) for n, ms in ((250, 0.001), (4000, 0.003)))
    known = calibration()
    rates = Rates(replace(known, points=(*known.points, *crowds)))
    op = weighted("conv", "int8", (64, 64, 1, 196))
    few, some, many, more = (rates.ms(op, count=n) for n in (1, 1000, 4000, 100_000))
    assert few == pytest.approx(rates.ms(op, count=250))
    assert few < some < many
    assert many - few == pytest.approx(0.002)
    assert more == many


def test_what_was_not_timed_is_taken_for_its_like() -> None:
    rates = Rates(calibration())
    linear, conv = (weighted(kind, "int8", (64, 64, 1, 49)) for kind in ("linear", "conv"))
    assert rates.ms(linear) == rates.ms(conv)
    with pytest.raises(ValueError, match="softmax"):
        rates.ms(elementwise("softmax", "int8", 64))


@given(
    ratios=st.lists(st.floats(-1, 1), min_size=20, max_size=30),
    bias=st.floats(-1, 1),
)
@settings(max_examples=25, deadline=None)
def test_the_interval_covers_as_many_as_it_says(ratios: list[float], bias: float) -> None:
    known = [Residual("class", f"g{i}", "onnx", "int8", 1, bias + ratio) for i, ratio in enumerate(ratios)]
    found = spread(known, "class", "onnx", "int8")
    missed = [
        abs(each.log_ratio - spread([o for o in known if o is not each], "class", "onnx", "int8").bias)
        for each in known
    ]
    assert np.mean([gap <= found.width + 1e-9 for gap in missed]) >= COVERAGE
    assert abs(found.bias - bias) <= 1


def test_all_of_a_group_are_left_out_together() -> None:
    known = [
        Residual("class", g, "onnx", "int8", n, r)
        for g, r in zip("abcd", (0, 0, 0, 2.0), strict=True)
        for n in (1, 2)
    ]
    assert spread(known, "class", "onnx", "int8").width == pytest.approx(2.0)
    with pytest.raises(ValueError, match="calibrated"):
        spread(known, "calibrated", "onnx", "int8")


def test_groups_count_alike_however_many_residuals_they_have() -> None:
    # Twenty networks are off by 0.1 each, and one that was measured a hundred times is off by 1.
    small = [Residual("class", f"g{i}", "onnx", "int8", 1, 0.1 * (-1) ** i) for i in range(20)]
    large = [Residual("class", "often", "onnx", "int8", 1, 1.0)] * 100
    assert spread([*small, *large], "class", "onnx", "int8").width < 0.3


def test_a_few_groups_give_the_largest_of_all() -> None:
    known = [
        Residual("class", g, "onnx", "int8", 1, r) for g, r in zip("abcde", (0, 0, 0, 0.1, 0.9), strict=True)
    ]
    assert spread(known, "class", "onnx", "int8").width == pytest.approx(0.9)


def test_a_core_in_order_reaches_less_of_its_peak() -> None:
    assert CORES["cortex-a53"].macs("int8") < CORES["cortex-a72"].macs("int8")


def test_the_correction_is_from_the_most_alike() -> None:
    known = [
        Residual("class", g, "onnx", p, 1, r) for g in "abc" for p, r in (("int8", 1.0), ("float32", -1.0))
    ]
    assert spread(known, "class", "onnx", "int8").bias == 1.0
    assert spread(known, "class", "tflite", "float32").bias == -1.0


def test_the_evidence_of_the_package_has_networks_and_boards() -> None:
    assert {each.basis for each in evidence()} == {"calibrated", "class"}
    assert all(math.isfinite(each.log_ratio) for each in evidence())
    # The estimate for the Raspberry Pi 3B+ is compared with published figures, so none of them may teach it.
    assert not {each.group for each in evidence()} & {"raspberry-pi-3b-plus"}


@pytest.mark.parametrize("name", PREDICTABLE)
def test_every_board_gets_an_estimate_inside_its_interval(name: str, tmp_path: Path) -> None:
    found = predict(written(tmp_path, CONV, "tflite", "int8"), load_profile(name))
    assert 0 < found.low_ms < found.ms < found.high_ms
    assert found.basis == "class"
    assert found.target == name
    tree = found.to_dict()
    assert tree["estimated"] is True
    json.dumps(tree, allow_nan=False)
    assert "estimated" in str(found)


@pytest.mark.parametrize(("name", "said"), [("generic", "names no processors"), ("stm32h7", "for size only")])
def test_a_profile_that_says_nothing_of_latency_is_refused(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        predict(written(tmp_path, CONV, "onnx", "int8"), load_profile(name))


def test_a_core_that_nobody_knows_is_named() -> None:
    profile = replace(load_profile("raspberry-pi-4"), processors=(Cluster("pentium", 1, 0.1),))
    with pytest.raises(UsageError, match="pentium"):
        estimate([weighted("conv", "int8", (8, 8, 1, 8))], "onnx", profile)


def test_all_cores_of_all_profiles_are_known() -> None:
    used = {cluster.core for name in names() for cluster in load_profile(name).processors}
    assert used <= set(CORES)


@given(work=st.integers(1, 10**9), threads=st.integers(1, 4))
def test_more_clock_more_threads_and_less_work_take_less_time(work: int, threads: int) -> None:
    profile = load_profile("raspberry-pi-4")
    op = Op("conv", "float32", work, 16, 16, 9, 100)
    faster = replace(profile, processors=tuple(replace(c, ghz=2 * c.ghz) for c in profile.processors))
    assert class_ms(op, faster, threads) < class_ms(op, profile, threads)
    assert class_ms(op, profile, 4) <= class_ms(op, profile, threads)
    assert class_ms(replace(op, work=2 * work), profile, threads) > class_ms(op, profile, threads)


def test_threads_run_on_the_fastest_cores() -> None:
    cores = [cluster.core for cluster in fastest(load_profile("pixel-8"), 3)]
    assert cores == ["cortex-x3", "cortex-a715", "cortex-a715"]


def test_a_calibration_answers_for_its_formats_and_threads_only(tmp_path: Path) -> None:
    known = calibration()
    whole = replace(known, points=(*known.points, Point("add", (1, 1, 1, 512), 512, 0.01)))
    profile = replace(load_profile("generic"), name="mine", calibration=(whole,))
    path = written(tmp_path, CONV, "onnx", "int8")
    assert predict(path, profile).basis == "calibrated"
    with pytest.raises(UsageError, match="not calibrated for onnx with 2 threads"):
        predict(path, profile, threads=2)
    with pytest.raises(UsageError, match="nothing like it"):
        predict(path, replace(profile, calibration=(known,)))


def test_of_several_passes_the_quickest_time_of_each_operator_counts() -> None:
    known = calibration()
    halved = replace(known.points[3], ms=known.points[3].ms / 2)
    other = replace(known, call_ms=0.001, op_ms=0.1, points=(*known.points[:3], halved, *known.points[4:]))
    found = quicker(known, other)
    assert (found.call_ms, found.op_ms) == (0.001, known.op_ms)
    assert found.points == other.points
    assert quicker(other, known) == found


def test_a_calibrated_profile_is_written_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    base = replace(load_profile("raspberry-pi-4"), name="mine")

    def few(format: str, precision: str) -> tuple[Probe, ...]:
        chosen = {probe.op.kind: probe for probe in reversed(probes(format, precision))}
        return tuple(chosen[kind] for kind in ("linear", "add"))

    monkeypatch.setattr("edgekit.bench.predict.calibrate.probes", few)
    told: list[float] = []
    profile = calibrate(base, passes=2, told=lambda share, what: told.append(share))
    assert [(c.format, c.precision) for c in profile.calibration] == [
        (f, p) for f in FORMATS for p in PRECISIONS
    ]
    assert all(point.ms > 0 for table in profile.calibration for point in table.points)
    assert told == sorted(told)
    again = read_profile(to_toml(profile), "mine")
    assert replace(again, calibration=()) == replace(profile, calibration=())
    assert [len(c.points) for c in again.calibration] == [2 + len(MANY_LINKS)] * 4
    assert read_profile(to_toml(again), "mine") == again


@pytest.mark.parametrize(
    ("shape", "order", "kind", "seen"),
    [
        ((1, 4, 6, 8), (0, 3, 1, 2), "transpose", (1, 8, 1, 192)),
        ((1, 8, 4, 6), (0, 2, 3, 1), "transpose", (1, 8, 1, 192)),
        ((1, 5, 4, 16), (0, 2, 1, 3), "transpose", (16, 1, 1, 20)),
        ((1, 8, 4, 200), (0, 3, 2, 1), "transpose", (1, 1, 1, 6400)),
        ((1, 1, 2, 2, 9), (0, 1, 4, 2, 3), "transpose", (1, 4, 1, 36)),
        ((1, 4, 1, 6), (0, 2, 1, 3), "copy", (24, 1, 1, 1)),
        ((2, 3), (0, 1), "copy", (6, 1, 1, 1)),
        ((), (), "copy", (1, 1, 1, 1)),
    ],
)
def test_a_transposition_is_known_by_what_stays_together(
    shape: tuple[int, ...], order: tuple[int, ...], kind: str, seen: tuple[int, ...]
) -> None:
    found = turned("int8", shape, order)
    assert (found.kind, found.shape, found.work) == (kind, seen, math.prod(shape))


@pytest.mark.parametrize(
    ("whole", "part", "size"),
    [((1, 8, 8, 4), (1, 8, 8, 6), 4), ((1, 8, 8, 4), (1, 8, 6, 4), 24), ((3,), (5,), 3), ((2, 3), (2, 3), 6)],
)
def test_a_piece_ends_with_the_first_axis_that_differs(
    whole: tuple[int, ...], part: tuple[int, ...], size: int
) -> None:
    assert piece(whole, part) == piece(part, whole) == size


def test_groups_of_channels_are_counted_one_by_one(tmp_path: Path) -> None:
    grouped = replace(CONV, groups=4)
    for format in FORMATS:
        found = read_ops(written(tmp_path, grouped, format, "int8"))
        assert {(op.kind, op.shape) for op in found if op.kind in ("conv", "grouped")} == {
            ("grouped", (4, 8, 9, 256))
        }


@given(
    values=st.lists(st.floats(-5, 5), min_size=1, max_size=12),
    shift=st.floats(-3, 3),
)
@settings(max_examples=30, deadline=None)
def test_a_process_goes_through_its_points_and_moves_with_them(values: list[float], shift: float) -> None:
    points = np.arange(len(values), dtype=np.float64)[:, None] * 3
    known = np.array(values)
    found, moved = Process.fitted(points, known), Process.fitted(points, known + shift)
    for point, value in zip(points, values, strict=True):
        # As near as the noise lets it: values are not so alike that it could not tell them apart.
        assert found.at(point) == pytest.approx(value, abs=0.6)
        assert moved.at(point) == pytest.approx(found.at(point) + shift, abs=0.6)


def test_a_process_takes_no_notice_of_a_coordinate_that_says_nothing() -> None:
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 8, (60, 2))
    found = Process.fitted(points, np.sin(points[:, 0]))
    assert found.lengths[1] > 3 * found.lengths[0]
    assert found.at(np.array([4.0, 4.0])) == pytest.approx(math.sin(4.0), abs=0.15)
