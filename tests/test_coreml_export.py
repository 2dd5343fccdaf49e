"""Quantized networks through the saved Core ML package against the quantized torch graph."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreml_nets import example_program, mobilenet_v2, quantized
from edgekit_converters.coreml import export_coreml
from edgekit_converters.coreml_reference import CoreMLReference
from edgekit_converters.errors import LoweringError
from edgekit_converters.program import QuantizedProgram
from edgekit_converters.reference import Reference

pytest.importorskip("coremltools")


class ConvResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.point(torch.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """Concatenation, max pooling, nearest and bilinear resizing, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        small = nn.functional.max_pool2d(both, 2)
        near = nn.functional.interpolate(small, scale_factor=2.0)
        smooth = nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear")
        return self.last(torch.cat([self.up(small), near], 1)), smooth


class Windows(nn.Module):
    """Reshapes through six axes, of which Core ML has five."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).reshape(1, 4, 4, 4, 4, 4).transpose(3, 4).reshape(1, 4, 16, 16)
        return self.b(x)


class Recurrent(nn.Module):
    def __init__(
        self, kind: str, *, layers: int = 2, bidirectional: bool = True, batch_first: bool = True
    ) -> None:
        super().__init__()
        self.core = getattr(nn, kind)(
            5, 6, layers, bidirectional=bidirectional, batch_first=batch_first, bias=layers > 1
        )
        self.head = nn.Linear(12 if bidirectional else 6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, state = self.core(x)
        return (self.head(y), *(state if isinstance(state, tuple) else (state,)))


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, proj_size=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


class GivenState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(5, 6), nn.GRU(5, 6)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.lstm(x, (h, c))[0], self.gru(x, h)[0]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
        x = self.embed(tokens) * keep.unsqueeze(-1)
        return self.out(nn.functional.gelu(self.norm(x)).mean(1))


def one_way(kind: str) -> nn.Module:
    return Recurrent(kind, layers=1, bidirectional=False, batch_first=False)


TOKENS = (torch.tensor([[1, 8, 0, 3]]), torch.tensor([[True, True, False, True]]))
SEQUENCE = (torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(1)),)
BY_STEPS = (SEQUENCE[0].transpose(0, 1),)
STATE = torch.full((1, 1, 6), 0.5)
IMAGE = (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)),)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], tuple[str, ...]]] = {
    "residual": (ConvResidual, IMAGE, ("x",)),
    "windows": (Windows, IMAGE, ("x",)),
    "branches": (Branches, IMAGE, ("picture",)),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 3)), SEQUENCE, ("v",)),
    "bidirectional lstm": (lambda: Recurrent("LSTM"), SEQUENCE, ("x",)),
    "lstm by steps": (lambda: one_way("LSTM"), BY_STEPS, ("x",)),
    "bidirectional gru": (lambda: Recurrent("GRU"), SEQUENCE, ("x",)),
    "gru by steps": (lambda: one_way("GRU"), BY_STEPS, ("x",)),
    "long gru": (lambda: Recurrent("GRU", layers=1), (torch.ones(1, 130, 5),), ("x",)),
    "rnn": (lambda: Recurrent("RNN"), SEQUENCE, ("x",)),
    "given states": (GivenState, (*BY_STEPS, STATE, STATE), ("x", "h", "c")),
    "projected lstm": (Projected, BY_STEPS, ("x",)),
    "tokens": (Tokens, TOKENS, ("tokens", "keep")),
}  # fmt: skip


@cache
def made(name: str) -> QuantizedProgram:
    build, example, names = NETWORKS[name]
    torch.manual_seed(5)
    return quantized(build(), example, names)


def steps_apart(program: QuantizedProgram, got: dict[str, np.ndarray], inputs: tuple[Tensor, ...]) -> float:
    """Largest difference of any output, in 1/256 of the output's range, which is a step or less of it."""
    with torch.no_grad():
        expected = Reference(program)(*inputs)
    worst = 0.0
    for mine, torchs in zip(got.values(), expected, strict=True):
        assert mine.shape == tuple(torchs.shape)
        step = float(torchs.max() - torchs.min()) / 256
        worst = max(worst, float(np.abs(mine - torchs.numpy()).max()) / max(step, 1e-9))
    return worst


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Package of a network, written once a run."""
    folder = tmp_path_factory.mktemp("packages")

    @cache
    def save(name: str) -> Path:
        path = folder / f"{name}.mlpackage"
        export_coreml(made(name), path)
        return path

    return save


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_package_computes_the_quantized_graph(name: str, saved: Callable[[str], Path]) -> None:
    program = made(name)
    reference = CoreMLReference(saved(name))
    assert reference.input_names == NETWORKS[name][2]
    assert reference.output_names == tuple(o.name for o in program.program.outputs)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        inputs = tuple(
            torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
            for t in NETWORKS[name][1]
        )
        got = reference.predict({n: t.numpy() for n, t in zip(NETWORKS[name][2], inputs, strict=True)})
        assert steps_apart(program, got, inputs) <= 1.0


def test_weights_stay_int8_in_the_file(saved: Callable[[str], Path]) -> None:
    for name, op in (("residual", "conv"), ("bidirectional lstm", "lstm"), ("bidirectional gru", "linear")):
        ops = CoreMLReference(saved(name)).ops()
        assert ops[op] >= 2, name
        assert ops["constexpr_affine_dequantize"] >= 4, name
        assert ops["quantize"], name


def test_an_lstm_is_one_op_a_layer_whichever_the_directions(saved: Callable[[str], Path]) -> None:
    assert CoreMLReference(saved("bidirectional lstm")).ops()["lstm"] == 2
    assert CoreMLReference(saved("lstm by steps")).ops()["lstm"] == 1


def test_a_long_gru_becomes_a_loop_and_a_short_one_does_not(saved: Callable[[str], Path]) -> None:
    for name, loops in (("long gru", 2), ("bidirectional gru", 0)):
        assert CoreMLReference(saved(name)).ops()["while_loop"] == loops


def test_nothing_is_requantized_between_moves(saved: Callable[[str], Path]) -> None:
    ops = CoreMLReference(saved("windows")).ops()
    # Input, first convolution, what is moved, second convolution.
    assert ops["quantize"] == ops["dequantize"] == 4


def digest(package: Path) -> str:
    sums = hashlib.sha256()
    for file in sorted(p for p in package.rglob("*") if p.is_file()):
        sums.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes())
    return sums.hexdigest()


def test_the_same_program_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "net.mlpackage", tmp_path / "größe b" / "other.mlpackage"
    first.parent.mkdir()
    second.parent.mkdir()
    program = made("branches")
    export_coreml(program, first)
    # Whatever was converted in between must not shine through in names.
    export_coreml(made("linear"), tmp_path / "between.mlpackage")
    export_coreml(program, second)
    assert digest(first) == digest(second)
    assert sorted(p.name for p in first.rglob("*") if p.is_file()) == [
        "Manifest.json",
        "model.mlmodel",
        "weight.bin",
    ]


@pytest.mark.slow
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    here = tmp_path / "here.mlpackage"
    export_coreml(made("residual"), here)
    script = (
        "import sys; from pathlib import Path; from test_coreml_export import made, export_coreml;"
        "export_coreml(made('residual'), Path(sys.argv[1]))"
    )
    there = tmp_path / "there.mlpackage"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(there)], check=True, env=environment)
    assert digest(here) == digest(there)


def test_an_older_package_is_replaced_but_no_other_folder(tmp_path: Path) -> None:
    target = tmp_path / "net.mlpackage"
    export_coreml(made("linear"), target)
    (target / "Data" / "stale").write_text("left over")
    export_coreml(made("linear"), target)
    assert not (target / "Data" / "stale").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("dear to me")
    with pytest.raises(FileExistsError, match="photos"):
        export_coreml(made("linear"), tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "dear to me"


def test_outputs_that_are_inputs_or_twice_the_same_keep_their_names(tmp_path: Path) -> None:
    class Repeats(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            y = x * 2
            return y, x, y

    x = torch.arange(6.0).reshape(1, 6)
    program = example_program(Repeats(), (x,))
    grids = (None,) * 3
    export_coreml(QuantizedProgram(program, (None,), grids), tmp_path / "net.mlpackage")
    got = CoreMLReference(tmp_path / "net.mlpackage").predict({"x": x.numpy()})
    assert [o.tolist() for o in got.values()] == [(2 * x).tolist(), x.tolist(), (2 * x).tolist()]
    assert list(got) == ["output_0", "output_1", "output_2"]


class Antialiased(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x * 1, size=(4, 4), mode="bilinear", antialias=True)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x)


class Median(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.median(-1)[0]


@pytest.mark.parametrize(
    ("net", "op"),
    [(Antialiased, "_upsample_bilinear2d_aa"), (Bessel, "special_i0"), (Median, "median")],
)
def test_an_op_that_core_ml_lacks_is_named_with_its_line(
    net: type[nn.Module], op: str, tmp_path: Path
) -> None:
    program = example_program(net(), IMAGE)
    with pytest.raises(LoweringError) as caught:
        export_coreml(QuantizedProgram(program, (None,), (None,)), tmp_path / "net.mlpackage")
    assert caught.value.format == "coreml"
    assert op in caught.value.op
    file, line = caught.value.where.rsplit(":", 1)
    assert Path(file).name == Path(__file__).name
    assert Path(__file__).read_text().splitlines()[int(line) - 1].lstrip().startswith("return")
    assert caught.value.way_out
    assert not (tmp_path / "net.mlpackage").exists()


def test_coremltools_is_left_as_it_was_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from edgekit_converters.coreml.quiet import import_coremltools

    import_coremltools()
    from coremltools.converters.mil.frontend.torch import ops
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
    from coremltools.converters.mil.mil import Builder

    level = logging.getLogger("coremltools").level
    before = dict(_TORCH_OPS_REGISTRY.name_to_func_mapping), dict(Builder.name_count), ops._tqdm
    capfd.readouterr()
    export_coreml(made("linear"), tmp_path / "net.mlpackage")
    assert (dict(_TORCH_OPS_REGISTRY.name_to_func_mapping), dict(Builder.name_count), ops._tqdm) == before
    assert logging.getLogger("coremltools").level == level
    assert "ops/s" not in "".join(capfd.readouterr())


def test_exporting_does_not_change_the_program(tmp_path: Path) -> None:
    program = made("residual")
    before = str(program.program.graph.graph)
    export_coreml(program, tmp_path / "net.mlpackage")
    assert str(program.program.graph.graph) == before


def test_many_samples_are_evaluated_one_by_one(saved: Callable[[str], Path]) -> None:
    reference = CoreMLReference(saved("residual"))
    x = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float64)
    together = reference.predict({"x": x})["output"]
    alone = [reference.predict({"x": x[i : i + 1]})["output"] for i in range(3)]
    assert together.shape == (3, 5)
    assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"y": np.zeros((1, 3, 16, 16))},
        {"x": np.zeros((1, 3, 16, 15))},
        {"x": np.zeros((0, 3, 16, 16))},
        {"x": np.zeros((3, 16, 16))},
    ],
    ids=["none", "unknown", "shape", "empty", "rank"],
)
def test_wrong_inputs_are_refused(inputs: dict[str, np.ndarray], saved: Callable[[str], Path]) -> None:
    with pytest.raises(LoweringError, match="expected"):
        CoreMLReference(saved("residual")).predict(inputs)


@pytest.mark.slow
def test_mobilenet_sized_networks_convert_and_evaluate(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    program = quantized(mobilenet_v2(10), (x,))
    export_coreml(program, tmp_path / "net.mlpackage")
    reference = CoreMLReference(tmp_path / "net.mlpackage")
    assert reference.ops()["conv"] == 52
    assert steps_apart(program, reference.predict({"x": x.numpy()}), (x,)) <= 1.0
