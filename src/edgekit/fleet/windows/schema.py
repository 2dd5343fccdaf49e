"""The contract of a post as a schema that a compiled reader checks, twenty times as fast as Python does.

It takes less than `edgekit_runtime.windows` does, never more: what it refuses is read again by the contract itself,
which decides and names the key. Only a key that stands twice in an object is not seen here; the last one counts, and
what is stored is written anew. A property test holds both to one another.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from pydantic_core import SchemaValidator
from pydantic_core import core_schema as cs

from edgekit_runtime.sketches import FIRST_BIN, LARGEST_SQUARES, LAST_BIN, MAX_COUNT, MAX_VALUE
from edgekit_runtime.strict_json import MAX_TEXT
from edgekit_runtime.windows import MAX_PAIRS, TASKS, Counts

Schema = Any
_ID: Final = cs.str_schema(strict=True, pattern="^[0-9a-f]{64}$")
_KEY: Final = cs.str_schema(strict=True, pattern="^[0-9a-f]{8,64}$")
_COUNT: Final = cs.int_schema(strict=True, ge=0, le=MAX_COUNT)
_SOME: Final = cs.int_schema(strict=True, ge=1, le=MAX_COUNT)
_NUMBER: Final = cs.float_schema(strict=True, allow_inf_nan=False, ge=-MAX_VALUE, le=MAX_VALUE)
_LENGTH: Final = cs.float_schema(strict=True, allow_inf_nan=False, ge=0, le=MAX_VALUE)
_SQUARES: Final = cs.float_schema(strict=True, allow_inf_nan=False, ge=0, le=LARGEST_SQUARES)
_TEXT: Final = cs.str_schema(strict=True, max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f\x7f]*$")
_NAME: Final = cs.str_schema(
    strict=True, max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f\x7f]*[!-~][^\x00-\x1f\x7f]*$"
)


def _object(**keys: Schema) -> Schema:
    return cs.typed_dict_schema(
        {key: cs.typed_dict_field(value, required=True) for key, value in keys.items()},
        extra_behavior="forbid",
        strict=True,
    )


_BINS: Final = cs.dict_schema(
    cs.literal_schema([str(number) for number in range(FIRST_BIN, LAST_BIN + 1)]), _SOME, strict=True
)
_SKETCH: Final = _object(below=_BINS, zeros=_COUNT, above=_BINS)
_MOMENTS: Final = _object(n=_COUNT, mean=_NUMBER, squares=_SQUARES, low=_NUMBER, high=_NUMBER)
_SIDE: Final = _object(latency_ms=_SKETCH, confidence=_SKETCH)
_WINDOW: Final = _object(
    schema=cs.literal_schema([1]),
    key=_KEY,
    live=_ID,
    candidate=_ID,
    task=cs.literal_schema(list(TASKS)),
    began_s=_COUNT,
    seconds=_LENGTH,
    counts=_object(**{each.name: _COUNT for each in fields(Counts)}),
    distance=_SKETCH,
    confusion=cs.list_schema(
        cs.tuple_positional_schema([_TEXT, _TEXT, _SOME]), max_length=MAX_PAIRS, strict=False
    ),
    other_pairs=_COUNT,
    sides=_object(live=_SIDE, candidate=_SIDE),
    noise=_object(compared=_COUNT, agreed=_COUNT, distance=_SKETCH, latency_ms=_SKETCH),
    inputs=cs.dict_schema(_NAME, _object(moments=_MOMENTS, values=_SKETCH), strict=True),
)
_POST: Final = SchemaValidator(
    _object(
        schema=cs.literal_schema([1]),
        device=_TEXT,
        status=cs.dict_schema(),
        reports=cs.list_schema(cs.any_schema(), strict=True),
        windows=cs.list_schema(_WINDOW, strict=True),
    )
)


def quickly_read(body: bytes) -> dict[str, Any] | None:
    """A post with windows that keep the contract as plain values; None where that is not certain.

    Args:
        body: JSON.
    """
    try:
        tree: dict[str, Any] = _POST.validate_json(body)
    except ValueError:
        return None
    return tree if all(_adds_up(window) for window in tree["windows"]) else None


def _adds_up(window: dict[str, Any]) -> bool:
    counts, noise, pairs = window["counts"], window["noise"], window["confusion"]
    return (
        counts["agreed"] <= counts["compared"]
        and noise["agreed"] <= noise["compared"]
        and len({pair[:2] for pair in pairs}) == len(pairs)
    )
