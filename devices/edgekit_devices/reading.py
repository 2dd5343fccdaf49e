"""Reads profiles from TOML, strictly: a key that nobody knows, a figure without a source, a value out of range."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from edgekit_devices.schema import (
    ASSUMED,
    BACKENDS,
    DELEGATES,
    FEATURES,
    FIGURES,
    FORMATS,
    MEASURED,
    WHEELS,
    Calibration,
    Cluster,
    Point,
    Profile,
    ProfileError,
)


def read_profile(text: str, name: str) -> Profile:
    """Read a profile from TOML.

    Args:
        text: content of the file.
        name: stem of the file, which names the profile.

    Raises:
        ProfileError: malformed TOML, or an unknown, missing or wrong key; the error names it.
    """
    file = f"{name}.toml"
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ProfileError(f"{file}: {error}", expected="TOML", way_out=f"Correct {file}.") from error
    values = _table(tree, Profile, file, "", skipped=("name",))
    profile = Profile(name=name, **values)
    _consistent(profile, file)
    return profile


def _table(
    tree: Mapping[str, Any], of: type[Any], file: str, where: str, *, skipped: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The values of a table in the types of a dataclass; every key is known, and none that is needed lacks."""
    known = {each.name: each for each in fields(of) if each.name not in skipped}
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Correct {file}."
            raise ProfileError(
                f"{file}: unknown key {where}{key}", expected=f"one of {', '.join(known)}", way_out=hint
            )
    values: dict[str, Any] = {}
    for key, about in known.items():
        if key not in tree:
            if about.default is MISSING and about.default_factory is MISSING:
                raise _wrong(file, f"no {where}{key}", _RULES[of][key].expected)
            continue
        values[key] = _value(tree[key], _RULES[of][key], file, where, key)
    return values


def _value(value: Any, rule: _Rule, file: str, where: str, key: str) -> Any:
    if rule.table is not None:
        if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
            raise _wrong(file, f"{where}{key} = {_short(value)}", rule.expected)
        return tuple(rule.table(**_table(each, rule.table, file, f"{key}.")) for each in value)
    try:
        return rule.read(value)
    except (ValueError, TypeError):
        raise _wrong(file, f"{where}{key} = {_short(value)}", rule.expected) from None


def _consistent(profile: Profile, file: str) -> None:
    """What keys say together."""
    counted = sum(cluster.count for cluster in profile.processors)
    if counted and profile.cores not in (None, counted):
        raise _wrong(
            file, f"cores = {profile.cores} beside processors of {counted}", "the same number, or no cores"
        )
    if profile.cores is not None and profile.threads > profile.cores:
        raise _wrong(
            file, f"threads = {profile.threads} on {profile.cores} cores", "at most a thread for each core"
        )
    for key in FIGURES:
        if getattr(profile, key) and key not in profile.sources:
            raise _wrong(
                file,
                f"{key} without a source",
                f'{key} in [sources]: its address, "{MEASURED}" or "{ASSUMED}"',
            )
    for key in profile.sources:
        if key not in {each.name for each in fields(Profile)}:
            raise _wrong(file, f"sources.{key}", "a source for a key of the profile")


def _wrong(file: str, what: str, expected: str) -> ProfileError:
    return ProfileError(f"{file}: {what}", expected=expected, way_out=f"Correct {file}.")


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a key takes; `read` returns the value in its own type or raises."""

    expected: str
    read: Callable[[Any], Any] = field(default=lambda value: value)
    table: type[Any] | None = None


def _checked(fits: bool, value: Any) -> Any:
    if not fits:
        raise ValueError(value)
    return value


def _text(*, empty: bool = False) -> _Rule:
    return _Rule("text", lambda v: _checked(isinstance(v, str) and (empty or bool(v.strip())), v))


def _whole(low: int, high: int) -> _Rule:
    def read(value: Any) -> Any:
        return _checked(
            isinstance(value, int) and not isinstance(value, bool) and low <= value <= high, value
        )

    return _Rule(f"a whole number from {low} to {high}", read)


def _number(low: float, high: float) -> _Rule:
    def read(value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(_checked(number and low <= value <= high, value))

    return _Rule(f"a number from {low:g} to {high:g}", read)


def _one(choices: tuple[str, ...]) -> _Rule:
    return _Rule(f"one of {', '.join(choices)}", lambda v: _checked(v in choices, v))


def _some(choices: tuple[str, ...]) -> _Rule:
    def read(value: Any) -> tuple[str, ...]:
        fits = isinstance(value, list) and all(each in choices for each in value)
        return tuple(_checked(fits and len(set(value)) == len(value), value))

    return _Rule(f"a list of {', '.join(choices)}, each at most once", read)


def _sentences(value: Any) -> tuple[str, ...]:
    return tuple(
        _checked(isinstance(value, list) and all(isinstance(each, str) and each for each in value), value)
    )


def _addresses(value: Any) -> dict[str, str]:
    fits = isinstance(value, dict) and all(
        isinstance(each, str) and (each.startswith("https://") or each in (MEASURED, ASSUMED))
        for each in value.values()
    )
    return dict(_checked(fits, value))


def _points(value: Any) -> tuple[Point, ...]:
    rows = _checked(
        isinstance(value, list) and all(isinstance(r, list) and len(r) == 7 for r in value), value
    )
    return tuple(_point(*row) for row in rows)


def _point(kind: Any, depth: Any, outs: Any, taps: Any, positions: Any, work: Any, ms: Any) -> Point:
    shape = (depth, outs, taps, positions)
    for number in (*shape, work):
        _checked(isinstance(number, int) and not isinstance(number, bool) and number >= 1, number)
    _checked(isinstance(kind, str) and isinstance(ms, float) and math.isfinite(ms) and ms > 0, ms)
    return Point(kind, shape, work, ms)


_CORE = _Rule(
    "a core in lower case, such as cortex-a53",
    lambda v: _checked(isinstance(v, str) and bool(v.strip()) and v == v.lower(), v),
)
_RULES: Mapping[type[Any], Mapping[str, _Rule]] = {
    Profile: {
        "title": _text(),
        "isa": _text(),
        "preferred_format": _one(FORMATS),
        "threads": _whole(1, 1024),
        "int8_saturates": _Rule("true or false", lambda v: _checked(isinstance(v, bool), v)),
        "notes": _Rule("a list of sentences", _sentences),
        "sources": _Rule(f'a table of figures to https addresses, "{MEASURED}" or "{ASSUMED}"', _addresses),
        "cores": _whole(1, 1024),
        "features": _some(FEATURES),
        "processors": _Rule("tables [[processors]] with core, count and ghz", table=Cluster),
        "l3_kb": _whole(1, 2**20),
        "memory_mb": _whole(1, 2**26),
        "bandwidth_gb_s": _number(0.05, 10_000),
        "flash_kb": _whole(1, 2**20),
        "ram_kb": _whole(1, 2**20),
        "backend": _one(BACKENDS),
        "delegate": _one(DELEGATES),
        "wheels": _some(WHEELS),
        "thermal": _text(empty=True),
        "calibration": _Rule(
            "tables [[calibration]] as `edgekit bench calibrate` writes them", table=Calibration
        ),
    },
    Cluster: {
        "core": _CORE,
        "count": _whole(1, 1024),
        "ghz": _number(0.01, 10),
        "l1_kb": _whole(1, 2**16),
        "l2_kb": _whole(1, 2**20),
    },
    Calibration: {
        "format": _one(("onnx", "tflite")),
        "precision": _one(("int8", "float32")),
        "threads": _whole(1, 1024),
        "call_ms": _number(0, 1000),
        "op_ms": _number(0, 1000),
        "points": _Rule("rows of kind, depth, outs, taps, positions, work and milliseconds", _points),
    },
}
