"""The recipe's tables as frozen values; each checks itself by the rules of its keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from edgekit.recipe.rules import FORMATS, PRESETS, validate

SLOWER: Final = 1.05
"""Timing on a shared machine scatters by some percent; only more than this times float is called slower."""


@dataclass(frozen=True, slots=True)
class Quantize:
    """How the grid is chosen; the defaults are the preset `balanced`.

    Attributes:
        observers: range observers to try, from `OBSERVERS`; the grid closest to float on calibration inputs is kept.
        percentile: share of the activations inside the range, in percent, for the `percentile` observer.
        equalize: cross-layer equalization: on, off, or "try" both.
        smooth: outlier channels of activations are moved into the weights that read them (SmoothQuant): on, off, or
            "try" both, by several amounts.
        compensation: weights are rounded so that their errors make good for one another (GPTQ): on, off, or "try" both.
        bias_correction: on, off, or "try" both.
        damage: measure for every layer what quantizing it alone does to the output.
        calibration_size: number of calibration inputs.
        weight_bits: 8; 7 for targets whose integer kernels saturate; fewer as a stress.
        keep_float: glob patterns of layers that stay float32.
        activations: on a fixed grid ("static"), on one that linear layers choose at each call ("dynamic"), without one
            ("float"), or "auto" by what holds the budget and is faster than float.
    """

    observers: tuple[str, ...] = PRESETS["balanced"]["observers"]
    percentile: float = 99.99
    equalize: bool | str = PRESETS["balanced"]["equalize"]
    smooth: bool | str = PRESETS["balanced"]["smooth"]
    compensation: bool | str = PRESETS["balanced"]["compensation"]
    bias_correction: bool | str = PRESETS["balanced"]["bias_correction"]
    damage: bool = PRESETS["balanced"]["damage"]
    calibration_size: int = PRESETS["balanced"]["calibration_size"]
    weight_bits: int = 8
    keep_float: tuple[str, ...] = ()
    activations: str = "auto"

    def __post_init__(self) -> None:
        validate(self, "quantize")


@dataclass(frozen=True, slots=True)
class Prune:
    """What is removed from the network before it is quantized.

    Attributes:
        ratio: share of the cost to remove; 0 removes nothing.
        by: the cost: "latency" of the INT8 layers as measured here, or "macs".
        importance: what puts the channels of one layer in order: the "magnitude" of their weights, or the first
            ("taylor") or second ("hessian") order change of the loss without them.
        multiple: channel counts are kept at multiples of this, as integer kernels like them.
        blocks: residual branches may go whole, too; "auto" lets them where the cost is latency, as narrow layers still
            cost their calls.
        rounds: prune and train in so many turns.
        keep: glob patterns of layers whose channels are not removed.
    """

    ratio: float = 0.0
    by: str = "latency"
    importance: str = "taylor"
    multiple: int = 8
    blocks: bool | str = "auto"
    rounds: int = 1
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate(self, "prune")


@dataclass(frozen=True, slots=True)
class Train:
    """How a pruned network, or another student, is trained.

    Attributes:
        epochs: passes over the training inputs; 0 trains nothing.
        distill: learn from the original model.
        labels: learn from labels, where the data has some, too.
        temperature: of the softened logits (Hinton et al. 2015).
        features: weight of the distance between features at the boundaries of what was pruned; 0 leaves it out.
        attention: weight of the distance between attention maps; 0 leaves it out.
        optimizer: "sgd" with momentum, "adamw", or "auto" by what the network is made of.
        learning_rate: highest of the cosine schedule; None takes the optimizer's usual one.
        batch_size: samples of a step; fewer where there are few to train on.
        weight_decay: of weights; norms and biases have none.
        ema: decay per step of the average of the weights that is kept; 0 keeps the last weights.
        patience: epochs without a better metric after which training ends; None trains to the end.
        augment: "auto" shifts images and flips those whose mirror image the teacher takes for the same; "none"; some of
            "flip,shift"; or module:callable, from a batch of inputs and a numpy generator to a batch of inputs.
        precision: of the arithmetic: "float32", "bfloat16" (weights stay float32), or "auto" by what the processor has.
        student: "module:callable" that builds another network to train instead of a pruned one.
    """

    epochs: int = 30
    distill: bool = True
    labels: bool = True
    temperature: float = 4.0
    features: float = 0.0
    attention: float = 0.0
    optimizer: str = "auto"
    learning_rate: float | None = None
    batch_size: int = 128
    weight_decay: float = 5e-4
    ema: float = 0.999
    patience: int | None = None
    augment: str = "auto"
    precision: str = "auto"
    student: str | None = None

    def __post_init__(self) -> None:
        validate(self, "train")


@dataclass(frozen=True, slots=True)
class Qat:
    """Training on the grid (quantization-aware training).

    Attributes:
        enabled: always, never, or "auto": where calibration alone misses the budget and there is data to train on.
        epochs: passes over the training inputs.
        learning_rate: highest of the cosine schedule; None takes a small one.
        learned_steps: the scales of activations are trained, too (LSQ, Esser et al. 2020).
    """

    enabled: bool | str = "auto"
    epochs: int = 3
    learning_rate: float | None = None
    learned_steps: bool = False

    def __post_init__(self) -> None:
        validate(self, "qat")


@dataclass(frozen=True, slots=True)
class Search:
    """How a budget is searched for.

    Attributes:
        trials: most trials to run.
        storage: database URL that several machines share; None keeps the trials beside the output.
    """

    trials: int = 12
    storage: str | None = None

    def __post_init__(self) -> None:
        validate(self, "search")


@dataclass(frozen=True, slots=True)
class Budget:
    """What an artifact must hold to be accepted.

    Attributes:
        max_drop: largest loss of the metric against float, in the metric's own unit (0.01: a point of top-1). None:
            0.01; 0.15 where the metric is agreement with float, as borderline inputs tip over without any loss.
        max_latency_ms: largest median latency, None for no limit.
        max_size_mb: largest artifact in 10^6 bytes, None for no limit.
        allow_slower: accept an artifact that is more than 5% slower than its float twin.
    """

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    allow_slower: bool = False

    def __post_init__(self) -> None:
        validate(self, "budget")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the manifest says about the model beyond what its graph says.

    Attributes:
        name: None takes the stem of the model's file.
        version: letters, digits and `.+_-`.
        task: "classification", "detection", …; "" when unknown.
        labels: class names in the order of the output.
    """

    name: str | None = None
    version: str = "1.0.0"
    task: str = ""
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate(self, "model")


@dataclass(frozen=True, slots=True)
class Device:
    """What every device holds the model to before it serves there.

    Attributes:
        max_latency_ms: median milliseconds of a prediction on that device, None for any.
    """

    max_latency_ms: float | None = None

    def __post_init__(self) -> None:
        validate(self, "device")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a compression can be told.

    Attributes:
        preset: row of `PRESETS` that `quantize` was filled from; a record, `load_recipe` applies it.
        formats: artifacts to write, from `FORMATS`.
        targets: device profiles that the artifacts must suit.
        io: dtype of the artifacts' ends where they have a grid, "float32" or "int8".
        layout: "nchw" keeps the model's axes, "nhwc" puts channels last on inputs of rank 4.
        metric: one of `METRICS`, `module:callable`, or None to choose by the data.
        seed: of every random choice.
        preprocessing: from raw images to inputs; `edgekit.data` knows its keys.
        quantize: how the grid is chosen.
        prune: what is removed before.
        train: how what is left is trained.
        qat: training on the grid.
        search: how a budget is searched for.
        budget: what must hold.
        model: what the manifest says about the model.
        device: what each device holds it to.
    """

    preset: str = "balanced"
    formats: tuple[str, ...] = FORMATS
    targets: tuple[str, ...] = ()
    io: str = "float32"
    layout: str = "nchw"
    metric: str | None = None
    seed: int = 0
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    quantize: Quantize = field(default_factory=Quantize)
    prune: Prune = field(default_factory=Prune)
    train: Train = field(default_factory=Train)
    qat: Qat = field(default_factory=Qat)
    search: Search = field(default_factory=Search)
    budget: Budget = field(default_factory=Budget)
    model: ModelCard = field(default_factory=ModelCard)
    device: Device = field(default_factory=Device)

    def __post_init__(self) -> None:
        validate(self, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, every default spelt out."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False, default=str))
        return plain

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical JSON of `to_dict`."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


SECTIONS: Mapping[str, type[Any]] = {
    "quantize": Quantize,
    "prune": Prune,
    "train": Train,
    "qat": Qat,
    "search": Search,
    "budget": Budget,
    "model": ModelCard,
    "device": Device,
}
