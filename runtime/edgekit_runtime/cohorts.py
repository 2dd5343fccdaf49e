"""Who is meant: expressions over the labels of a device, read the same by server and device. Standard library only.

```
region == "eu" and hardware in ("pi4", "pi5") and not (customer == "acme" or site != "")
```

Names are labels, values are quoted strings, operators are `==`, `!=`, `in`, `not in`, `and`, `or` and `not`, as strong
as in Python. A label that a device does not have is "". The empty expression means every device. Python's own parser
reads it, what is none of the above is refused, and Python evaluates nothing of it.
"""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from edgekit_runtime.strict_json import UNPRINTABLE, ContractError, show

MAX_COHORT_BYTES: Final = 1024
MAX_DEPTH: Final = 16
MAX_VALUE: Final = 128
NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")

_KEY: Final = "cohort"
_VALUE: Final = 'a value in quotes, such as "eu"'
_VALUES: Final = 'values in parentheses, such as ("pi4", "pi5") or ("pi4",)'
# A prefix such as f"…" is none of ours, and without a backslash a value is what is written.
_TOKEN: Final = re.compile(
    r"""(?P<space>\ +)|[a-z][a-z0-9_]*(?!["'\w])|(?P<text>"[^"\\]*"|'[^'\\]*')|==|!=|[(),]"""
)


@dataclass(frozen=True, slots=True)
class Among:
    """A label has one of these values.

    Attributes:
        name: of the label.
        values: at least one.
        negated: it has none of them.
    """

    name: str
    values: tuple[str, ...]
    negated: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it is so."""
        return (labels.get(self.name, "") in self.values) != self.negated


@dataclass(frozen=True, slots=True)
class Not:
    """A part does not hold."""

    part: Node

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it is so."""
        return not self.part.holds(labels)


@dataclass(frozen=True, slots=True)
class Joined:
    """Every part holds, or one of them does.

    Attributes:
        parts: at least two.
        every: "and"; else "or".
    """

    parts: tuple[Node, ...]
    every: bool

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it is so."""
        found = (part.holds(labels) for part in self.parts)
        return all(found) if self.every else any(found)


Node = Among | Not | Joined


@dataclass(frozen=True, slots=True)
class Cohort:
    """Devices by their labels.

    Attributes:
        root: of the expression, None for every device.
        text: canonical; the same expression has the same text, whatever its spaces, quotes and needless parentheses.
    """

    root: Node | None
    text: str

    @staticmethod
    def parse(text: str) -> Cohort:
        """Read an expression.

        Args:
            text: at most 1 KiB of UTF-8, at most 16 levels deep.

        Raises:
            ContractError: it is none; the error names the place and what was expected there.
        """
        _check_size(text)
        _check_tokens(text)
        # Python takes no indent; places are told in the text as it was given.
        source = text.lstrip(" ")
        skipped = len(text) - len(source)
        if not source:
            return Cohort(None, "")
        try:
            tree = ast.parse(source, mode="eval")
        except (SyntaxError, RecursionError, MemoryError) as error:
            # Python counts from one.
            at = (getattr(error, "offset", None) or 1) - 1
            raise _error(text, skipped + at, "a condition here, and parentheses in pairs") from None
        root = _Reader(text, source, skipped).node(tree.body, 1)
        found = _written(root)
        _check_size(found)
        return Cohort(root, found)

    @property
    def names(self) -> frozenset[str]:
        """Labels that it asks for."""
        return frozenset(_names(self.root)) if self.root is not None else frozenset()

    def includes(self, labels: Mapping[str, str]) -> bool:
        """Whether a device with these labels is meant."""
        return self.root is None or self.root.holds(labels)


def check_name(key: str, name: object) -> None:
    """Check the name of a label, so that every label can stand in an expression.

    Raises:
        ContractError: it is none.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ContractError(
            key, show(name), "a label such as region: small letters, digits and _, at most 32"
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    """From Python's tree to ours.

    Attributes:
        text: as it was given.
        source: that was parsed.
        skipped: characters of the text before the source.
    """

    text: str
    source: str
    skipped: int

    def node(self, tree: ast.expr, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.error(tree, f"at most {MAX_DEPTH} levels")
        if isinstance(tree, ast.BoolOp):
            every = isinstance(tree.op, ast.And)
            parts = [self.node(each, depth + 1) for each in tree.values]
            return Joined(tuple(part for each in parts for part in _flat(each, every)), every)
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.Not):
            return Not(self.node(tree.operand, depth + 1))
        if isinstance(tree, ast.Compare) and len(tree.ops) == 1:
            return self.among(tree.left, tree.ops[0], tree.comparators[0])
        raise self.error(tree, 'a condition such as region == "eu"')

    def among(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Among:
        if not isinstance(left, ast.Name) or not NAME.fullmatch(left.id):
            raise self.error(left, "a label such as region: small letters, digits and _, at most 32")
        if isinstance(op, (ast.Eq, ast.NotEq)):
            return Among(left.id, (self.value(right, _VALUE),), isinstance(op, ast.NotEq))
        if not isinstance(op, (ast.In, ast.NotIn)):
            raise self.error(left, "==, !=, in or not in after the label")
        if not isinstance(right, ast.Tuple) or not right.elts:
            raise self.error(right, _VALUES)
        values = tuple(self.value(each, _VALUES) for each in right.elts)
        return Among(left.id, tuple(dict.fromkeys(values)), isinstance(op, ast.NotIn))

    def value(self, tree: ast.expr, expected: str) -> str:
        if not isinstance(tree, ast.Constant) or not isinstance(tree.value, str):
            raise self.error(tree, expected)
        if len(tree.value) > MAX_VALUE:
            raise self.error(tree, f"at most {MAX_VALUE} characters in a value")
        return tree.value

    def error(self, tree: ast.expr, expected: str) -> ContractError:
        # Python counts bytes.
        before = self.source.encode()[: tree.col_offset].decode("utf-8", "replace")
        return _error(self.text, self.skipped + len(before), expected)


def _check_size(text: object) -> None:
    if not isinstance(text, str):
        raise ContractError(_KEY, show(text), "text")
    if UNPRINTABLE.search(text):
        raise ContractError(_KEY, show(text), "text without control characters, in one line")
    if (size := len(text.encode())) > MAX_COHORT_BYTES:
        raise ContractError(_KEY, f"{size} bytes", f"at most {MAX_COHORT_BYTES}")


def _check_tokens(text: str) -> None:
    """Let nothing but our own few tokens come to the parser: no comment, no number, no other kind of text."""
    at, depth, was_text = 0, 0, False
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise _error(text, at, 'a label, ==, !=, in, not, and, or, parentheses, or a value such as "eu"')
        if token["space"] is None:
            if was_text and token["text"] is not None:
                # Python would make one of two.
                raise _error(text, at, "a comma between two values")
            was_text = token["text"] is not None
            depth += {"(": 1, ")": -1}.get(token[0], 0)
            if depth > MAX_DEPTH:
                raise _error(text, at, f"at most {MAX_DEPTH} levels of parentheses")
        at = token.end()


def _flat(node: Node, every: bool) -> tuple[Node, ...]:
    """`a and (b and c)` says the same without parentheses."""
    return node.parts if isinstance(node, Joined) and node.every == every else (node,)


def _names(node: Node) -> Iterator[str]:
    if isinstance(node, Among):
        yield node.name
        return
    for part in node.parts if isinstance(node, Joined) else (node.part,):
        yield from _names(part)


def _written(node: Node) -> str:
    if isinstance(node, Not):
        inner = _written(node.part)
        return f"not ({inner})" if isinstance(node.part, Joined) else f"not {inner}"
    if isinstance(node, Joined):
        # "and" holds stronger than "or".
        parts = (
            f"({_written(e)})" if node.every and isinstance(e, Joined) else _written(e) for e in node.parts
        )
        return (" and " if node.every else " or ").join(parts)
    values = [_quoted(each) for each in node.values]
    if len(values) == 1:
        return f"{node.name} {'!=' if node.negated else '=='} {values[0]}"
    return f"{node.name} {'not in' if node.negated else 'in'} ({', '.join(values)})"


def _quoted(value: str) -> str:
    return f"'{value}'" if '"' in value else f'"{value}"'


def _error(text: str, at: int, expected: str) -> ContractError:
    found = show(text[at : at + 24]) if at < len(text) else "the end"
    return ContractError(_KEY, f"{found} at character {at + 1}", expected)
