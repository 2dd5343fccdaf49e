"""Where no fixed grid holds the activations: grids found at run time, else int8 weights alone, in every format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import edgekit
from edgekit import judge
from edgekit.bench import LatencyStats
from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.judge import Judged, Quality
from edgekit.recipe import Budget
from edgekit.stages.quantize.rungs import DYNAMIC, STATIC, WEIGHTS
from edgekit.verify import verify_bundle
from edgekit_converters.parity import Proof

WIDTH, TOKENS, BLOCKS, CLASSES = 8, 4, 5, 4


class Block(nn.Module):
    """Pre-norm block whose MLP has one hidden unit that is huge, and that the next layer all but ignores.

    No constant can take the division up: between the two layers there is an activation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.again = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        with torch.no_grad():
            self.up.weight[0] *= 3e3
            self.down.weight[:, 0] /= 3e4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (f(y).unsqueeze(1) for f in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + self.down(F.gelu(self.up(self.again(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x).mean(1))


def data() -> dict[str, np.ndarray]:
    """Tokens, and what the float network says to them."""
    x = np.random.default_rng(0).normal(size=(192, TOKENS, WIDTH)).astype(np.float32)
    with torch.no_grad():
        return {"x": x, "y": Transformer().eval()(torch.from_numpy(x)).argmax(1).numpy()}


def compress(out: Path, formats: list[str], **options: object) -> Bundle:
    return edgekit.compress(
        Transformer().eval(), data=data(), out=out, preset="fast", formats=formats, **options
    )


@pytest.mark.slow
def test_weights_alone_are_taken_in_every_format_where_static_int8_loses_too_much(tmp_path: Path) -> None:
    made = compress(tmp_path / "out", ["onnx", "tflite", "coreml"], max_drop=0.05, allow_slower=True)

    assert made.report["accepted"], made.report["reasons"]
    assert made.report["baseline"]["metric"] == "top1"
    for artifact in made.report["artifacts"].values():
        assert artifact["lowering"] == WEIGHTS
        assert artifact["drop"] <= 0.05
        assert artifact["proof"]["holds"]
        assert any(note.startswith(f"{STATIC} loses ") for note in artifact["notes"])
    assert (tmp_path / "out" / "golden-weights.npz").exists()
    assert {a.golden for a in made.manifest.artifacts} == {"golden-weights.npz"}


class Homogeneous(nn.Module):
    """Layers without biases: an input a thousand times as large gives the same answer, on another scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=False) for a, b in ((16, 32), (32, 32), (32, CLASSES))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


def loud_and_quiet() -> dict[str, np.ndarray]:
    """Inputs over five orders of magnitude, and what the float network says to them."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(192, 16)) * 10.0 ** rng.uniform(-3, 2, size=(192, 1))).astype(np.float32)
    with torch.no_grad():
        return {"x": x, "y": Homogeneous().eval()(torch.from_numpy(x)).argmax(1).numpy()}


def homogeneous(out: Path, activations: str, formats: list[str], **options: object) -> Bundle:
    recipe = out.with_suffix(".toml")
    recipe.write_text(f'[quantize]\nactivations = "{activations}"\n', encoding="utf-8")
    options = {"data": loud_and_quiet(), "preset": "fast", "formats": formats, "recipe": recipe, **options}
    return edgekit.compress(Homogeneous().eval(), out=out, allow_slower=True, **options)


@pytest.mark.slow
def test_activations_are_quantized_at_run_time_where_no_fixed_grid_holds_them(tmp_path: Path) -> None:
    made = homogeneous(tmp_path / "out", "auto", ["onnx", "tflite", "coreml"], max_drop=0.05)

    assert made.report["accepted"], made.report["reasons"]
    found = made.report["artifacts"]
    assert {n: a["lowering"] for n, a in found.items()} == {
        "onnx": DYNAMIC,
        "tflite": DYNAMIC,
        "coreml": WEIGHTS,
    }
    for artifact in found.values():
        assert artifact["proof"]["holds"]
        assert any(note.startswith(f"{STATIC} loses ") for note in artifact["notes"])
    assert {a.format: a.golden for a in made.manifest.artifacts} == {
        "onnx": "golden-dynamic-onnx.npz",
        "tflite": "golden-dynamic-tflite.npz",
        "coreml": "golden-weights.npz",
    }
    assert made.manifest.inputs[0].shape == (-1, 16)
    assert made.manifest.compatibility.minimum_runtime["tflite"] == "2.17.0"
    verified = verify_bundle(tmp_path / "out")
    assert verified.holds, verified.failures
    # Writing a bundle over one with these files is not taken for somebody else's folder.
    again = homogeneous(tmp_path / "out", "static", ["onnx"])
    assert again.report["artifacts"]["onnx"]["lowering"] == STATIC


@pytest.mark.slow
def test_they_are_also_tried_where_a_fixed_grid_is_slower_than_the_user_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = iter([0.8, 0.5])

    def sampled(runners: Mapping[str, object], *, max_seconds: float) -> dict[str, np.ndarray]:
        assert max_seconds > 0
        median = next(lowered)
        return {n: np.full(50, 1.0 if n.endswith("float") else median) for n in runners}

    monkeypatch.setattr(judge, "sample", sampled)
    made = homogeneous(tmp_path / "out", "auto", ["onnx"], max_drop=1.0, max_latency_ms=0.6)

    assert made.report["accepted"], made.report["reasons"]
    assert made.report["artifacts"]["onnx"]["lowering"] == DYNAMIC
    assert made.report["trials"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activations", "lowered"), [("static", STATIC), ("dynamic", DYNAMIC), ("float", WEIGHTS)]
)
def test_a_recipe_says_what_becomes_of_activations(tmp_path: Path, activations: str, lowered: str) -> None:
    made = homogeneous(tmp_path / "out", activations, ["onnx"])

    onnx = made.report["artifacts"]["onnx"]
    assert onnx["lowering"] == lowered
    assert onnx["proof"]["holds"]
    assert all(note.startswith(lowered) for note in onnx["notes"])


@pytest.mark.slow
def test_dynamic_activations_need_a_linear_layer(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[quantize]\nactivations = "dynamic"\n', encoding="utf-8")

    with pytest.raises(UsageError, match="has no linear layer"):
        edgekit.compress(
            network,
            data={"x": np.random.default_rng(0).normal(size=(64, 1, 6, 6)).astype(np.float32)},
            out=tmp_path / "out",
            preset="fast",
            formats=["onnx"],
            recipe=recipe,
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_they_are_not_taken_where_they_are_slower_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowered = iter([0.8, 1.2, 1.5])

    def sampled(runners: Mapping[str, object], *, max_seconds: float) -> dict[str, np.ndarray]:
        assert max_seconds > 0
        median = next(lowered)
        return {n: np.full(50, 1.0 if n.endswith("float") else median) for n in runners}

    monkeypatch.setattr(judge, "sample", sampled)
    # A limit that the user names would be searched for further; the default one is only held.
    made = compress(tmp_path / "out", ["onnx"])

    onnx = made.report["artifacts"]["onnx"]
    assert onnx["lowering"] == STATIC
    assert not made.report["accepted"]
    assert any("top1 fell by" in reason for reason in made.report["reasons"])
    assert any(note.startswith(f"{WEIGHTS} took 1.50 times as long as float") for note in onnx["notes"])
    assert any(note.startswith(f"{DYNAMIC} loses ") for note in onnx["notes"])


@pytest.mark.slow
def test_they_are_not_taken_for_what_pruning_lost_before_any_grid(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, CLASSES)).eval()
    x = np.random.default_rng(0).normal(size=(192, 1, 6, 6)).astype(np.float32)
    with torch.no_grad():
        y = network(torch.from_numpy(x)).argmax(1).numpy()
    (tmp_path / "recipe.toml").write_text('[prune]\nby = "macs"\n')
    made = edgekit.compress(
        network,
        data={"x": x, "y": y},
        out=tmp_path / "out",
        recipe=tmp_path / "recipe.toml",
        preset="fast",
        formats=["onnx"],
        prune=0.7,
        epochs=0,
        allow_slower=True,
    )

    onnx = made.report["artifacts"]["onnx"]
    assert onnx["drop"] > 0.05
    assert onnx["lowering"] == STATIC
    assert not any(WEIGHTS in note for note in onnx["notes"])


def judged(drop: float, ratio: float | None, milliseconds: float = 1.0) -> Judged:
    """A file that loses so much and takes `ratio` times as long as its twin; None: it cannot be timed here."""

    def stats(ms: float) -> LatencyStats | None:
        return None if ratio is None else LatencyStats(ms, ms, ms, n=9)

    missing = cast(Any, None)
    return Judged(
        missing,
        missing,
        cast(Proof, missing),
        Quality(0.9, drop, 1.0, 30.0, 99),
        stats(milliseconds),
        stats(milliseconds / (ratio or 1.0)),
        (0.9, 99),
    )


HOLDS, LOSES, SLOW, BOTH = judged(0.001, 0.9), judged(0.2, 0.5), judged(0.001, 1.3), judged(0.2, 1.2)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (HOLDS, LOSES),
        (HOLDS, SLOW),
        (HOLDS, BOTH),
        (judged(0.009, 0.8), HOLDS),
        (judged(0.1, 0.9), LOSES),
        (LOSES, SLOW),
        (BOTH, SLOW),
        (judged(0.001, None), judged(0.2, None)),
        (judged(0.1, None), judged(0.2, None)),
        (HOLDS, judged(math.nan, 0.5)),
    ],
)
def test_what_holds_the_budget_is_better_then_what_is_closer_to_it(better: Judged, worse: Judged) -> None:
    budget = Budget(max_drop=0.01)

    assert better.better_than(worse, budget)
    assert not worse.better_than(better, budget)


def test_of_two_equal_files_neither_is_better() -> None:
    assert not judged(0.001, None).better_than(judged(0.001, None), Budget(max_drop=0.01))


def test_a_latency_limit_counts_as_slow_and_a_slower_file_may_be_allowed() -> None:
    quick, late = judged(0.2, 0.5, 1.0), judged(0.001, 0.9, 3.0)
    limited, free = Budget(max_drop=0.01, max_latency_ms=2.0), Budget(max_drop=0.01, allow_slower=True)

    assert late.slow(limited)
    assert not late.better_than(quick, limited)
    assert SLOW.slow(Budget(max_drop=0.01))
    assert not SLOW.slow(free)
    assert SLOW.better_than(LOSES, free)
