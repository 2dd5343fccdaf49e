"""The recipe: everything that a compression can be told, as one frozen value read from TOML.

A recipe is the preset's row, then the file, then the options of the command line; later ones win key by key.
Unknown keys, wrong types and values out of range are refused with file, key, value and the nearest right one:
a misspelt key that is silently ignored is a model compressed in another way than asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from edgekit.errors import UsageError

__all__ = ["PRESETS", "Budget", "ModelCard", "Quantize", "Recipe", "load_recipe"]

FORMATS = ("onnx", "tflite", "coreml")
OBSERVERS = ("minmax", "percentile", "mse", "entropy")
METRICS = ("top1", "f1", "mae", "agreement")
MAX_FILE_BYTES = 1_000_000

# A preset is a set of candidates: every observer named here, with and without what is "try", is evaluated.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {
            "observers": ("minmax",),
            "equalize": False,
            "compensation": False,
            "bias_correction": False,
            "damage": False,
            "calibration_size": 64,
        },
        "balanced": {
            "observers": ("minmax", "percentile", "mse"),
            "equalize": False,
            "compensation": "try",
            "bias_correction": "try",
            "damage": True,
            "calibration_size": 128,
        },
        "max": {
            "observers": OBSERVERS,
            "equalize": "try",
            "compensation": "try",
            "bias_correction": "try",
            "damage": True,
            "calibration_size": 256,
        },
    }
)


class _MismatchError(Exception):
    """A value that a rule does not take; the rule says what it expects."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a key takes: `read` returns the value in its own type or raises `_MismatchError`."""

    expected: str
    read: Callable[[object], object]
    choices: tuple[str, ...] = ()


def _number(low: float, high: float = math.inf, *, open_low: bool = False) -> _Rule:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _MismatchError
        if value > high or value < low or (open_low and value == low):
            raise _MismatchError
        return float(value)

    bound = f"above {low:g}" if open_low else f"of at least {low:g}"
    return _Rule(f"a number {bound}" + (f" and at most {high:g}" if high != math.inf else ""), read)


def _whole(low: int, high: int) -> _Rule:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _MismatchError
        return value

    return _Rule(f"a whole number from {low} to {high}", read)


def _one_of(*choices: str) -> _Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _MismatchError
        return value

    return _Rule("one of " + ", ".join(f'"{each}"' for each in choices), read, choices)


def _some_of(*choices: str) -> _Rule:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not value or len(set(map(str, value))) != len(value):
            raise _MismatchError
        if any(each not in choices for each in value):
            raise _MismatchError
        return tuple(value)

    return _Rule(
        "a list of " + ", ".join(f'"{each}"' for each in choices) + ", each at most once", read, choices
    )


def _text(expected: str, fits: Callable[[str], bool] = lambda text: bool(text.strip())) -> _Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or not fits(value):
            raise _MismatchError
        return value

    return _Rule(expected, read)


def _texts(expected: str) -> _Rule:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each for each in value):
            raise _MismatchError
        return tuple(value)

    return _Rule(expected, read)


def _flag(*, or_try: bool = False) -> _Rule:
    def read(value: object) -> object:
        if isinstance(value, bool) or (or_try and value == "try"):
            return value
        raise _MismatchError

    return _Rule('true, false or "try"' if or_try else "true or false", read)


def _free() -> _Rule:
    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _MismatchError
        return dict(value)

    return _Rule("a table", read)


def _optional(rule: _Rule) -> _Rule:
    return _Rule(rule.expected, lambda value: None if value is None else rule.read(value), rule.choices)


def _is_reference(text: str) -> bool:
    module, _, name = text.partition(":")
    return all(part.isidentifier() for part in module.split(".")) and name.isidentifier()


# One row a key; "" is the top of the file. The order is the order of the documentation.
_RULES: Mapping[str, Mapping[str, _Rule]] = {
    "": {
        "preset": _one_of(*PRESETS),
        "formats": _some_of(*FORMATS),
        "targets": _texts("a list of profile names; `edgekit devices` lists them"),
        "io": _one_of("float32", "int8"),
        "layout": _one_of("nchw", "nhwc"),
        "metric": _optional(
            _text(
                f"one of {', '.join(METRICS)}, or module:callable",
                lambda text: text in METRICS or _is_reference(text),
            )
        ),
        "seed": _whole(0, 2**32 - 1),
        "preprocessing": _free(),
    },
    "quantize": {
        "observers": _some_of(*OBSERVERS),
        "percentile": _number(50, 100, open_low=True),
        "equalize": _flag(or_try=True),
        "compensation": _flag(or_try=True),
        "bias_correction": _flag(or_try=True),
        "damage": _flag(),
        "calibration_size": _whole(1, 100_000),
        "weight_bits": _whole(7, 8),
        "keep_float": _texts("a list of layer names, * and ? allowed"),
    },
    "budget": {
        "max_drop": _optional(_number(0)),
        "max_latency_ms": _optional(_number(0, open_low=True)),
        "max_size_mb": _optional(_number(0, open_low=True)),
        "allow_slower": _flag(),
    },
    "model": {
        "name": _optional(_text("a name")),
        "version": _text("a version such as 1.0.0"),
        "task": _text("a task such as classification, or nothing", lambda _: True),
        "labels": _texts("a list of class names"),
    },
}


def _validate(value: object, section: str) -> None:
    """Run the rules of a section over a dataclass; a list given for a tuple is stored as the tuple."""
    for key, rule in _RULES[section].items():
        read = _apply(rule, getattr(value, key), "recipe", f"{section}.{key}" if section else key)
        object.__setattr__(value, key, read)


@dataclass(frozen=True, slots=True)
class Quantize:
    """How the grid is chosen; the defaults are the preset `balanced`.

    Attributes:
        observers: range observers to try, from `OBSERVERS`; the grid closest to float on calibration inputs is kept.
        percentile: share of the activations inside the range, in percent, for the `percentile` observer.
        equalize: cross-layer equalization: on, off, or "try" both.
        compensation: weights are rounded so that their errors make good for one another (GPTQ): on, off, or "try" both.
        bias_correction: on, off, or "try" both.
        damage: measure for every layer what quantizing it alone does to the output.
        calibration_size: number of calibration inputs.
        weight_bits: 8, or 7 for targets whose integer kernels saturate.
        keep_float: glob patterns of layers that stay float32.
    """

    observers: tuple[str, ...] = PRESETS["balanced"]["observers"]
    percentile: float = 99.99
    equalize: bool | str = PRESETS["balanced"]["equalize"]
    compensation: bool | str = PRESETS["balanced"]["compensation"]
    bias_correction: bool | str = PRESETS["balanced"]["bias_correction"]
    damage: bool = PRESETS["balanced"]["damage"]
    calibration_size: int = PRESETS["balanced"]["calibration_size"]
    weight_bits: int = 8
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _validate(self, "quantize")


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
        _validate(self, "budget")


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
        _validate(self, "model")


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
        budget: what must hold.
        model: what the manifest says about the model.
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
    budget: Budget = field(default_factory=Budget)
    model: ModelCard = field(default_factory=ModelCard)

    def __post_init__(self) -> None:
        _validate(self, "")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain JSON values, every default spelt out."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False, default=str))
        return plain

    def digest(self) -> str:
        """Return the sha256 (hex) of the canonical JSON of `to_dict`."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


def load_recipe(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe.

    Args:
        path: a TOML file, None for the preset alone.
        overrides: options of the command line in the shape of the file, `{"budget": {"max_drop": 0.02}}`;
            they win over the file key by key, and a preset named here replaces the file's.

    Raises:
        UsageError: the file cannot be read, or a key or value is wrong.
    """
    tree = {} if path is None else _checked(_read_toml(path), str(path))
    for key, value in _checked(overrides or {}, _OPTIONS).items():
        tree[key] = {**tree.get(key, {}), **value} if key in _SECTIONS else value
    preset = str(tree.get("preset", "balanced"))
    quantize = Quantize(**{**PRESETS[preset], **tree.pop("quantize", {})})
    budget, model = Budget(**tree.pop("budget", {})), ModelCard(**tree.pop("model", {}))
    return Recipe(**tree, quantize=quantize, budget=budget, model=model)


_SECTIONS = tuple(name for name in _RULES if name)
# What messages call the source of values that come from no file.
_OPTIONS = "options"


def _read_toml(path: Path) -> dict[str, Any]:
    way_out = "Give a recipe in TOML; docs/recipe.md shows one."
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise UsageError(
                f"{path}: larger than {MAX_FILE_BYTES} bytes", expected="a TOML file", way_out=way_out
            )
        return tomllib.loads(raw.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", expected="a readable file", way_out=way_out) from error
    except (ValueError, RecursionError) as error:  # malformed TOML or UTF-8, or nested without end
        raise UsageError(f"{path}: {error}", expected="a TOML file in UTF-8", way_out=way_out) from error


def _checked(tree: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the tree with every value read by its rule."""
    known = (*_RULES[""], *_SECTIONS)
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in known:
            raise _unknown(source, key, key, known)
        if key not in _SECTIONS:
            result[key] = _apply(_RULES[""][key], value, source, key)
            continue
        if not isinstance(value, Mapping):
            raise _wrong(source, key, value, _Rule(f"a table, [{key}]", lambda _: None))
        result[key] = {}
        for name, item in value.items():
            if name not in _RULES[key]:
                raise _unknown(source, f"{key}.{name}", name, tuple(_RULES[key]))
            result[key][name] = _apply(_RULES[key][name], item, source, f"{key}.{name}")
    return result


def _apply(rule: _Rule, value: object, source: str, path: str) -> object:
    try:
        return rule.read(value)
    except (_MismatchError, TypeError):
        raise _wrong(source, path, value, rule) from None


def _named(source: str, path: str) -> str:
    """A key of a file as `file: section.key`, an option as it is typed."""
    if source != _OPTIONS:
        return f"{source}: {path}"
    key = path.rpartition(".")[2]
    return "--" + {"formats": "format", "targets": "target"}.get(key, key).replace("_", "-")


def _wrong(source: str, path: str, value: object, rule: _Rule) -> UsageError:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    given = value if isinstance(value, list | tuple) else [value]
    hints = [hint for each in given if each not in rule.choices for hint in _close(str(each), rule.choices)]
    return UsageError(
        f"{_named(source, path)} = {shown if len(shown) <= 80 else shown[:77] + '…'}",
        expected=rule.expected,
        way_out=f'Did you mean "{hints[0]}"?'
        if hints
        else f"Correct the value, or leave the {'option' if source == _OPTIONS else 'key'} out for its default.",
    )


def _unknown(source: str, path: str, name: str, known: tuple[str, ...]) -> UsageError:
    hints = _close(name, known)
    return UsageError(
        f"{source}: unknown key {path}",
        expected=f"one of {', '.join(sorted(known))}",
        way_out=f'Did you mean "{hints[0]}"?' if hints else "Remove the key.",
    )


def _close(text: str, choices: tuple[str, ...]) -> list[str]:
    return difflib.get_close_matches(text.lower(), choices, n=1, cutoff=0.5)
