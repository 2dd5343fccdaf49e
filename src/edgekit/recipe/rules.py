"""What every key of a recipe takes, and how a wrong value is told: file, key, value and the nearest right one."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgekit.errors import UsageError

FORMATS = ("onnx", "tflite", "coreml")
OBSERVERS = ("minmax", "percentile", "mse", "entropy")
METRICS = ("top1", "f1", "mae", "agreement")
ACTIVATIONS = ("auto", "static", "dynamic", "float")
COSTS = ("latency", "macs")
IMPORTANCES = ("magnitude", "taylor", "hessian")
OPTIMIZERS = ("auto", "sgd", "adamw")
PRECISIONS = ("auto", "float32", "bfloat16")
AUGMENTATIONS = ("flip", "shift")
# What messages call the source of values that come from no file.
OPTIONS = "options"

# A preset is a set of candidates: every observer named here, with and without what is "try", is evaluated.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "fast": {
            "observers": ("minmax",),
            "equalize": False,
            "smooth": False,
            "compensation": False,
            "bias_correction": False,
            "damage": False,
            "calibration_size": 64,
        },
        "balanced": {
            "observers": ("minmax", "percentile", "mse"),
            "equalize": False,
            "smooth": "try",
            "compensation": "try",
            "bias_correction": "try",
            "damage": True,
            "calibration_size": 128,
        },
        "max": {
            "observers": OBSERVERS,
            "equalize": "try",
            "smooth": "try",
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
class Rule:
    """What a key takes: `read` returns the value in its own type or raises `_MismatchError`."""

    expected: str
    read: Callable[[object], object]
    choices: tuple[str, ...] = ()


def _number(low: float, high: float = math.inf, *, open_low: bool = False) -> Rule:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _MismatchError
        if value > high or value < low or (open_low and value == low):
            raise _MismatchError
        return float(value)

    bound = f"above {low:g}" if open_low else f"of at least {low:g}"
    return Rule(f"a number {bound}" + (f" and at most {high:g}" if high != math.inf else ""), read)


def _whole(low: int, high: int) -> Rule:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _MismatchError
        return value

    return Rule(f"a whole number from {low} to {high}", read)


def _one_of(*choices: str) -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or value not in choices:
            raise _MismatchError
        return value

    return Rule("one of " + ", ".join(f'"{each}"' for each in choices), read, choices)


def _some_of(*choices: str) -> Rule:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not value or len(set(map(str, value))) != len(value):
            raise _MismatchError
        if any(each not in choices for each in value):
            raise _MismatchError
        return tuple(value)

    return Rule(
        "a list of " + ", ".join(f'"{each}"' for each in choices) + ", each at most once", read, choices
    )


def _text(expected: str, fits: Callable[[str], bool] = lambda text: bool(text.strip())) -> Rule:
    def read(value: object) -> str:
        if not isinstance(value, str) or not fits(value):
            raise _MismatchError
        return value

    return Rule(expected, read)


def _texts(expected: str) -> Rule:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) and each for each in value):
            raise _MismatchError
        return tuple(value)

    return Rule(expected, read)


def _flag(third: str | None = None) -> Rule:
    def read(value: object) -> object:
        if isinstance(value, bool) or (third is not None and value == third):
            return value
        raise _MismatchError

    return Rule(f'true, false or "{third}"' if third else "true or false", read)


def _free() -> Rule:
    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _MismatchError
        return dict(value)

    return Rule("a table", read)


def _optional(rule: Rule) -> Rule:
    return Rule(rule.expected, lambda value: None if value is None else rule.read(value), rule.choices)


def is_reference(text: str) -> bool:
    """Is it module:callable?"""
    module, _, name = text.partition(":")
    return all(part.isidentifier() for part in module.split(".")) and name.isidentifier()


# One row a key; "" is the top of the file. The order is the order of the documentation.
RULES: Mapping[str, Mapping[str, Rule]] = {
    "": {
        "preset": _one_of(*PRESETS),
        "formats": _some_of(*FORMATS),
        "targets": _texts("a list of profile names; `edgekit devices` lists them"),
        "io": _one_of("float32", "int8"),
        "layout": _one_of("nchw", "nhwc"),
        "metric": _optional(
            _text(
                f"one of {', '.join(METRICS)}, or module:callable",
                lambda text: text in METRICS or is_reference(text),
            )
        ),
        "seed": _whole(0, 2**32 - 1),
        "preprocessing": _free(),
    },
    "quantize": {
        "observers": _some_of(*OBSERVERS),
        "percentile": _number(50, 100, open_low=True),
        "equalize": _flag("try"),
        "smooth": _flag("try"),
        "compensation": _flag("try"),
        "bias_correction": _flag("try"),
        "damage": _flag(),
        "calibration_size": _whole(1, 100_000),
        "weight_bits": _whole(4, 8),
        "keep_float": _texts("a list of layer names, * and ? allowed"),
        "activations": _one_of(*ACTIVATIONS),
    },
    "prune": {
        "ratio": _number(0, 0.95),
        "by": _one_of(*COSTS),
        "importance": _one_of(*IMPORTANCES),
        "multiple": _whole(1, 64),
        "blocks": _flag("auto"),
        "rounds": _whole(1, 20),
        "keep": _texts("a list of layer names, * and ? allowed"),
    },
    "train": {
        "epochs": _whole(0, 100_000),
        "distill": _flag(),
        "labels": _flag(),
        "temperature": _number(0, 100, open_low=True),
        "features": _number(0),
        "attention": _number(0),
        "optimizer": _one_of(*OPTIMIZERS),
        "learning_rate": _optional(_number(0, open_low=True)),
        "batch_size": _whole(1, 65_536),
        "weight_decay": _number(0),
        "ema": _number(0, 0.99999),
        "patience": _optional(_whole(1, 100_000)),
        "augment": _text(
            "auto, none, some of flip and shift with commas, or module:callable",
            lambda text: (
                text in {"auto", "none"} or is_reference(text) or set(text.split(",")) <= set(AUGMENTATIONS)
            ),
        ),
        "precision": _one_of(*PRECISIONS),
        "student": _optional(_text("module:callable", is_reference)),
    },
    "qat": {
        "enabled": _flag("auto"),
        "epochs": _whole(1, 100_000),
        "learning_rate": _optional(_number(0, open_low=True)),
        "learned_steps": _flag(),
    },
    "search": {
        "trials": _whole(1, 10_000),
        "storage": _optional(_text("a database URL such as sqlite:///trials.db", lambda text: "://" in text)),
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
    "device": {
        "max_latency_ms": _optional(_number(0, open_low=True)),
    },
}


def validate(value: object, section: str) -> None:
    """Run the rules of a section over a dataclass; a list given for a tuple is stored as the tuple."""
    for key, rule in RULES[section].items():
        read = apply(rule, getattr(value, key), "recipe", f"{section}.{key}" if section else key)
        object.__setattr__(value, key, read)


def apply(rule: Rule, value: object, source: str, path: str) -> object:
    """Read a value by its rule.

    Raises:
        UsageError: the rule does not take it.
    """
    try:
        return rule.read(value)
    except (_MismatchError, TypeError):
        raise wrong(source, path, value, rule) from None


# Options that are not spelled as their key.
_SPELLED = {"formats": "format", "targets": "target", "prune.ratio": "prune", "qat.enabled": "qat"}


def _named(source: str, path: str) -> str:
    """A key of a file as `file: section.key`, an option as it is typed."""
    if source != OPTIONS:
        return f"{source}: {path}"
    key = _SPELLED.get(path) or path.rpartition(".")[2]
    return "--" + key.replace("_", "-")


def wrong(source: str, path: str, value: object, rule: Rule) -> UsageError:
    """The error for a value that its rule does not take."""
    shown = json.dumps(value, ensure_ascii=False, default=str)
    given = value if isinstance(value, list | tuple) else [value]
    hints = [hint for each in given if each not in rule.choices for hint in _close(str(each), rule.choices)]
    return UsageError(
        f"{_named(source, path)} = {shown if len(shown) <= 80 else shown[:77] + '…'}",
        expected=rule.expected,
        way_out=f'Did you mean "{hints[0]}"?'
        if hints
        else f"Correct the value, or leave the {'option' if source == OPTIONS else 'key'} out for its default.",
    )


def unknown(source: str, path: str, name: str, known: tuple[str, ...]) -> UsageError:
    """The error for a key that nobody knows."""
    hints = _close(name, known)
    return UsageError(
        f"{source}: unknown key {path}",
        expected=f"one of {', '.join(sorted(known))}",
        way_out=f'Did you mean "{hints[0]}"?' if hints else "Remove the key.",
    )


def _close(text: str, choices: tuple[str, ...]) -> list[str]:
    return difflib.get_close_matches(text.lower(), choices, n=1, cutoff=0.5)
