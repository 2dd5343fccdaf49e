"""Deltas that the server makes: what is found in both files, that they come out right, and what strangers upload."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgekit.fleet.releases import deltas
from edgekit.fleet.releases.deltas import Delta, Segment, difference, make, matched, pack, patch, subtract
from edgekit.fleet.releases.tensor_bytes import Span, tensors
from edgekit_runtime import deltas as wire
from support.tiny_files import write_onnx, write_tflite

Tensors = dict[str, npt.NDArray[np.generic]]
RNG = np.random.default_rng(0)
BACKBONE, HEAD = (
    RNG.normal(0, 30, n).clip(-127, 127).astype(np.int8).reshape(-1, 40) for n in (120_000, 2_000)
)
BIAS = RNG.integers(-(2**20), 2**20, 640).astype(np.int32)


def network(path: Path, weights: Tensors, *, producer: str = "tests") -> Path:
    """A file of weights that nothing computes with."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "weights",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, producer_name=producer), str(path))
    return path


def nudged(tensor: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Every fourth number by one."""
    step = RNG.choice(np.array([-1, 0, 0, 0, 0, 0, 0, 1]), tensor.shape)
    return (tensor + step).clip(-127, 127).astype(np.int8)


def applied(delta: Delta, base: Path, size: int, folder: Path) -> bytes:
    (folder / "delta").write_bytes(delta.content)
    return b"".join(wire.apply(delta.offer.format, base, folder / "delta", size))


FIRST: Tensors = {"backbone": BACKBONE, "bias": BIAS, "head": HEAD}
# What becomes of the first version, and the share of the full file that its delta may take.
NEXT: dict[str, tuple[Callable[[], Tensors], float]] = {
    "the head is trained anew": (lambda: {**FIRST, "head": HEAD[::-1].copy()}, 0.03),
    "all is tuned": (lambda: {k: nudged(v) if v.dtype == np.int8 else v + 3 for k, v in FIRST.items()}, 0.2),
    "tensors moved": (lambda: dict(reversed(FIRST.items())), 0.02),
    "tensors moved and are tuned": (lambda: {k: nudged(v) for k, v in [*FIRST.items()][::-2]}, 0.2),
    "names are new": (lambda: {f"{k}.1": v if k == "bias" else nudged(v) for k, v in FIRST.items()}, 0.2),
    "another is put before": (lambda: {"stem": np.zeros(300, np.float32), **FIRST}, 0.02),
}


@pytest.mark.parametrize("what", NEXT)
def test_a_delta_is_small_and_makes_the_new_file(what: str, tmp_path: Path) -> None:
    after, most = NEXT[what]
    base = network(tmp_path / "base.onnx", FIRST)
    new = network(tmp_path / "new.onnx", after(), producer="tests of another version")
    delta = make(base, new)
    assert delta is not None
    assert delta.offer.size_bytes == len(delta.content) <= most * new.stat().st_size
    assert delta.sha256 == hashlib.sha256(new.read_bytes()).hexdigest()
    assert delta.offer.sha256 == hashlib.sha256(delta.content).hexdigest()
    assert delta.path == f"deltas/{delta.sha256}/{delta.offer.base}.{delta.offer.format}"
    assert applied(delta, base, new.stat().st_size, tmp_path) == new.read_bytes()


def test_numbers_that_changed_by_little_are_subtracted_and_what_moved_about_is_patched(
    tmp_path: Path,
) -> None:
    base = network(tmp_path / "base.onnx", FIRST)
    tuned = network(tmp_path / "tuned.onnx", {k: nudged(v) for k, v in FIRST.items() if k != "bias"})
    cut = network(tmp_path / "cut.onnx", {"one": BACKBONE[:1500], "two": BACKBONE[1500:]})
    found = [make(base, new) for new in (tuned, cut)]
    assert [each and each.offer.format for each in found] == ["tensor", "zstd"]


def test_there_is_no_delta_where_the_full_file_is_as_good(tmp_path: Path) -> None:
    base = network(tmp_path / "base.onnx", FIRST)
    other = network(tmp_path / "other.onnx", {"w": RNG.integers(-128, 128, 100_000).astype(np.int8)})
    small = network(tmp_path / "small.onnx", {"head": HEAD})
    empty = tmp_path / "empty"
    empty.touch()
    assert [make(a, b) for a, b in ((base, other), (base, base), (base, small), (empty, base))] == [None] * 4


def test_without_zstd_tensors_are_subtracted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = network(tmp_path / "base.onnx", FIRST)
    new = network(tmp_path / "new.onnx", {**FIRST, "head": HEAD[::-1].copy()})
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    assert patch(base, new) is None
    assert "zstd" not in wire.usable()
    delta = make(base, new)
    assert delta is not None
    assert delta.offer.format == "tensor"


def test_large_files_are_not_held_in_memory_by_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = network(tmp_path / "base.onnx", FIRST)
    new = network(tmp_path / "new.onnx", {**FIRST, "head": HEAD[::-1].copy()})
    monkeypatch.setattr(wire, "MAX_ZSTD_BYTES", 1000)
    assert patch(base, new) is None
    monkeypatch.setattr(deltas, "MAX_BYTES", 1000)
    assert make(base, new) is None


# The format


@given(st.data())
def test_what_is_packed_comes_out(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    old = np.frombuffer(data.draw(st.binary(min_size=64, max_size=400)), np.uint8)
    segments, new = list[Segment](), b""
    for op in data.draw(st.lists(st.sampled_from([wire.COPY, *wire.WIDTHS]), min_size=1, max_size=6)):
        size = data.draw(st.integers(1, 8)) * 8
        at = data.draw(st.integers(0, len(old) - size)) if size <= len(old) else 0
        segments.append(Segment(op, len(new), size, at))
        copied = old[at : at + size].tobytes()
        new += copied if op == wire.COPY else data.draw(st.binary(min_size=size, max_size=size))
    folder = tmp_path_factory.mktemp("packed")
    (folder / "base").write_bytes(old.tobytes())
    content = pack(segments, old, np.frombuffer(new, np.uint8))
    assert content is not None
    (folder / "delta").write_bytes(content)
    parts = list(wire.apply("tensor", folder / "base", folder / "delta", len(new)))
    assert b"".join(parts) == new


@given(st.sampled_from([1, 2, 4, 8]), st.binary(min_size=8, max_size=64), st.binary(min_size=8, max_size=64))
def test_a_difference_is_undone_at_every_width(width: int, was: bytes, now: bytes) -> None:
    size = min(len(was), len(now)) // 8 * 8
    a, b = (np.frombuffer(each[:size], np.uint8) for each in (was, now))
    assert wire.undo(difference(a, b, width), a.tobytes(), width) == b.tobytes()


# Where tensors lie


def test_tensors_of_an_onnx_file_lie_where_onnx_finds_them(tmp_path: Path) -> None:
    content = write_onnx(tmp_path / "model.onnx", quantized=True).read_bytes()
    found = {span.name: span for span in tensors(memoryview(content))}
    initializers = onnx.load_from_string(content).graph.initializer
    assert len(found) == len(initializers) > 5
    for each in initializers:
        span = found[each.name]
        assert content[span.at : span.at + span.size] == each.raw_data
        assert (span.shape, span.kind) == (tuple(each.dims), each.data_type)
        assert span.width == numpy_helper.to_array(each).itemsize


def test_tensors_of_a_tflite_file_have_their_names_and_numbers(tmp_path: Path) -> None:
    content = write_tflite(tmp_path / "model.tflite").read_bytes()
    found = tensors(memoryview(content))
    assert found
    assert all(span.size % span.width == 0 for span in found)
    assert any(int(np.prod(span.shape)) * span.width == span.size for span in found)


def test_tensors_of_the_same_name_are_matched_before_those_of_the_same_shape() -> None:
    def span(name: str, at: int, shape: tuple[int, ...] = (4,)) -> Span:
        return Span(name, 3, shape, at, 4, 1)

    old = [span("a", 0), span("b", 4), span("c", 8)]
    new = [span("b", 0), span("new", 4), span("c", 8), span("a", 12, (2, 2))]
    assert [(a.name, b.name) for a, b in matched(old, new)] == [("b", "b"), ("a", "new"), ("c", "c")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("files")
    onnx_file = write_onnx(folder / "model.onnx", quantized=True)
    return [onnx_file.read_bytes(), write_tflite(folder / "model.tflite").read_bytes()]


@given(st.data())
def test_whatever_a_stranger_uploads_tensors_lie_in_the_file_and_apart(
    files: list[bytes], data: st.DataObject
) -> None:
    content = bytearray(data.draw(st.sampled_from(files)))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    end = 0
    for span in tensors(memoryview(bytes(content))):
        assert span.at >= end
        assert span.size > 0
        end = span.at + span.size
    assert end <= len(content)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_model_have_no_tensors_that_leave_them(content: bytes) -> None:
    for head in (b"", b"\x1c\0\0\0TFL3"):
        data = head + content
        assert all(span.at + span.size <= len(data) for span in tensors(memoryview(data)))


def test_subgraphs_that_share_their_tensors_without_end_are_given_up() -> None:
    many = 30_000
    # One table of fields serves all: the third one is a vector of tables, and so is the first.
    content = bytearray(struct.pack("<I4s5HH", 20, b"TFL3", 10, 8, 4, 0, 4, 0))
    for _ in range(2):  # the model at 20, then the subgraph that all its entries are
        table, vector = len(content), len(content) + 8
        content += struct.pack("<iII", table - 8, 4, many)
        end = vector + 4 + 4 * many
        content += b"".join(struct.pack("<I", end - at) for at in range(vector + 4, end, 4))
    content += struct.pack("<ii", len(content) - 16, 0) + struct.pack("<2H", 4, 4)
    began_s = time.monotonic()
    assert tensors(memoryview(bytes(content))) == []
    assert time.monotonic() - began_s < 10


def test_a_file_that_is_cut_in_the_middle_gets_a_right_delta_or_none(tmp_path: Path) -> None:
    base = network(tmp_path / "base.onnx", FIRST)
    new = tmp_path / "new.onnx"
    new.write_bytes(network(tmp_path / "whole.onnx", {k: nudged(v) for k, v in FIRST.items() if k != "bias"})
                    .read_bytes()[:100_000])  # fmt: skip
    assert subtract(base, new) is None
    delta = make(base, new)
    assert delta is None or applied(delta, base, 100_000, tmp_path) == new.read_bytes()
