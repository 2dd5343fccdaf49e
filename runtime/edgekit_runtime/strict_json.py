"""Strict reading of JSON that nobody vouches for, and the checks that the wire types share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

MAX_BYTES = 4 * 1024 * 1024  # a manifest with the 21,841 labels of ImageNet-22k is about 0.6 MB
MAX_DEPTH = 12
MAX_ITEMS = 100_000
MAX_TEXT = 4096

UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
# An escape is swallowed whole, so that an escaped quote does not end a string.
_STRUCTURE = re.compile(r'\\.|["\[\]{}]', re.DOTALL)

T = TypeVar("T")


class ContractError(Exception):
    """A manifest that breaks the contract.

    Args:
        key: where, from the root of the document: `artifacts[0].file`; "" is the document itself.
        found: what is there.
        expected: what would be right.
    """

    def __init__(self, key: str, found: str, expected: str) -> None:
        # Keys are a stranger's words, and messages go to terminals.
        key = UNPRINTABLE.sub("?", key)
        self.key, self.found, self.expected = key, found, expected
        super().__init__(f"manifest{': ' + key if key else ''}: found {found}, expected {expected}")

    def under(self, parent: str) -> ContractError:
        """Return the same error with the key seen from `parent`."""
        joined = parent if not self.key else f"{parent}.{self.key}" if parent else self.key
        return ContractError(joined, self.found, self.expected)


def read_text(value: object, path: str) -> str:
    """Return `value` if it is text."""
    if not isinstance(value, str):
        raise ContractError(path, show(value), "text")
    return value


def read_whole(value: object, path: str) -> int:
    """Return `value` if it is a whole number; a bool is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ContractError(path, show(value), "a whole number")
    return value


class Fields:
    """A JSON object with exactly the keys that the contract names."""

    __slots__ = ("_items", "_path")

    def __init__(
        self, value: object, path: str, required: Iterable[str], optional: Iterable[str] = ()
    ) -> None:
        if not isinstance(value, dict):
            raise ContractError(path, show(value), "an object")
        required = tuple(required)
        known = (*required, *optional)
        self._items: dict[str, object] = value
        self._path = path
        for key in value:
            if key not in known:
                raise ContractError(self._at(key), "an unknown key", f"one of {', '.join(sorted(known))}")
        for key in required:
            if key not in value:
                raise ContractError(self._at(key), "nothing", "this key")

    def _at(self, key: str) -> str:
        shown = UNPRINTABLE.sub("?", key[:80])
        return f"{self._path}.{shown}" if self._path else shown

    @property
    def names(self) -> tuple[str, ...]:
        """The keys that are there."""
        return tuple(self._items)

    def take(self, key: str) -> object:
        """Return the value of `key` as it was parsed."""
        return self._items[key]

    def text(self, key: str) -> str:
        """Return the text at `key`."""
        return read_text(self._items[key], self._at(key))

    def whole(self, key: str) -> int:
        """Return the whole number at `key`."""
        return read_whole(self._items[key], self._at(key))

    def real(self, key: str) -> float:
        """Return the finite number at `key`."""
        value = self._items[key]
        if not isinstance(value, (int, float)) or not is_real(value):
            raise ContractError(self._at(key), show(value), "a finite number")
        return float(value)

    def mapping(self, key: str) -> dict[str, Any]:
        """Return the object at `key`."""
        value = self._items[key]
        if not isinstance(value, dict):
            raise ContractError(self._at(key), show(value), "an object")
        return value

    def each(self, key: str, read: Callable[[object, str], T]) -> tuple[T, ...]:
        """Return the list at `key`, each item read by `read(item, path)`."""
        value = self._items[key]
        if not isinstance(value, list):
            raise ContractError(self._at(key), show(value), "a list")
        if len(value) > MAX_ITEMS:
            raise ContractError(self._at(key), f"{len(value)} items", f"at most {MAX_ITEMS}")
        return tuple(read(item, f"{self._at(key)}[{index}]") for index, item in enumerate(value))


def within(path: str, build: Callable[[], T]) -> T:
    """Build a value and let its own check speak with the full key."""
    try:
        return build()
    except ContractError as error:
        raise error.under(path) from None


def parse(document: str | bytes) -> object:
    """Parse a JSON document, refusing what is too large, too deep, ambiguous or not finite."""
    size = len(document)
    if size > MAX_BYTES:
        raise ContractError("", f"{size} bytes", f"at most {MAX_BYTES}")
    try:
        text = document.decode("utf-8") if isinstance(document, bytes) else document
        _check_nesting(text)
        return json.loads(text, object_pairs_hook=_unique_object, parse_constant=_refuse_constant)
    except ContractError:
        raise
    except ValueError as error:  # malformed JSON, malformed UTF-8, an integer of thousands of digits
        raise ContractError("", f"{error}", "a JSON document in UTF-8") from error


def _check_nesting(text: str) -> None:
    """Bound the depth before parsing, because the parser recurses on the C stack."""
    depth, inside_string = 0, False
    for match in _STRUCTURE.finditer(text):
        mark = match.group()
        if mark == '"':
            inside_string = not inside_string
        elif not inside_string and mark in "[]{}":
            depth += 1 if mark in "[{" else -1
            if depth > MAX_DEPTH:
                raise ContractError("", f"more than {MAX_DEPTH} levels of nesting", f"at most {MAX_DEPTH}")


def _unique_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    items: dict[str, object] = {}
    for key, value in pairs:
        if key in items:
            raise ContractError(UNPRINTABLE.sub("?", key[:80]), "the key twice", "each key once")
        items[key] = value
    return items


def _refuse_constant(name: str) -> object:
    raise ContractError("", name, "finite numbers; JSON has no NaN or Infinity")


def is_real(value: object) -> bool:
    """Tell whether `value` is a finite number; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of float
        return False


def show(value: object) -> str:
    """Return `value` for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def check_text(key: str, value: object, *, empty: bool = True) -> None:
    """Check text of bounded length without control characters."""
    if not isinstance(value, str):
        raise ContractError(key, show(value), "text")
    if len(value) > MAX_TEXT:
        raise ContractError(key, f"{len(value)} characters", f"at most {MAX_TEXT}")
    if UNPRINTABLE.search(value):
        raise ContractError(key, show(value), "text without control characters")
    if not empty and not value.strip():
        raise ContractError(key, show(value), "text that is not empty")


def check_pattern(key: str, value: object, pattern: re.Pattern[str], expected: str) -> None:
    """Check that the whole text matches `pattern`."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ContractError(key, show(value), expected)


def check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of `choices`."""
    if value not in choices:
        raise ContractError(key, show(value), f"one of {', '.join(choices)}")


def check_whole(key: str, value: object, low: int, high: int) -> None:
    """Check a whole number within `[low, high]`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ContractError(key, show(value), f"a whole number from {low} to {high}")


def check_unique(key: str, values: list[str], what: str) -> None:
    """Refuse a value of `what` that an earlier entry of the list `key` has."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        if value in seen:
            raise ContractError(f"{key}[{index}].{what}", show(value), "a value that no other entry has")
        seen.add(value)


def check_file(key: str, value: object) -> None:
    """Hold a path inside the bundle on every system: POSIX separators, no drive, no step upwards."""
    check_text(key, value, empty=False)
    path = str(value)
    parts = path.split("/")
    if path.startswith("/") or "\\" in path or ":" in path or any(part in ("", ".", "..") for part in parts):
        raise ContractError(key, show(path), "a relative path inside the bundle, with / between its parts")
    if len(path.encode()) > 255 or parts[0].startswith("."):
        raise ContractError(key, show(path), "at most 255 bytes, not hidden")


def check_plain(key: str, value: object, depth: int = 2) -> None:
    """Check that a free part holds JSON values only, so that `to_json` cannot fail or lose anything."""
    if depth > MAX_DEPTH:
        raise ContractError(key, "deeper nesting", f"at most {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_text(key, name, empty=False)
            check_plain(f"{key}.{name}", item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_plain(f"{key}[{index}]", item, depth + 1)
    elif isinstance(value, str):
        check_text(key, value)
    elif value is not None and not isinstance(value, bool) and not is_real(value):
        raise ContractError(key, show(value), "text, a finite number, true, false, null, a list or an object")
